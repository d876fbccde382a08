"""What the one knob of the anomaly search means.

`sensitivity` reads like a z-score: more is stricter and finds less. 2.0 is the default.

=========== ============================= ==================================================
sensitivity short series: false-alarm     long series (a day and more): how far above the
            rate of the whole search      record of the week, as a multiple of the default
=========== ============================= ==================================================
1.0         1 in 100                      0.25
1.5         1 in 1,000                    0.5
2.0         1 in 10,000                   1
2.5         1 in 100,000                  2
3.0         1 in 1,000,000                4
=========== ============================= ==================================================
"""

from __future__ import annotations

from apivitals.errors import ConfigurationError

DEFAULT = 2.0
LOWEST, HIGHEST = 0.5, 10.0


def checked(sensitivity: float) -> float:
    """The value, if it can be used.

    Raises:
        ConfigurationError: it is not a number from 0.5 to 10.
    """
    number = isinstance(sensitivity, (int, float)) and not isinstance(sensitivity, bool)
    if not number or not LOWEST <= sensitivity <= HIGHEST:
        raise ConfigurationError(
            f"sensitivity is {sensitivity!r}; give a number from {LOWEST:g} to {HIGHEST:g} "
            "(more finds less; 2.0 is usual)"
        )
    return float(sensitivity)


def alpha_of(sensitivity: float) -> float:
    """Nominal false-alarm rate of the search of one short series."""
    return float(10.0 ** (-2.0 * checked(sensitivity)))


def margin_of(sensitivity: float) -> float:
    """Factor on the margin by which a long series must beat its record."""
    return float(4.0 ** (checked(sensitivity) - DEFAULT))
