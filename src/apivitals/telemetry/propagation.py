"""A propagator that carries nothing, for a configuration that names none."""

from __future__ import annotations

from opentelemetry import propagate
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)


class NoPropagator(TextMapPropagator):
    """Reads and writes no header."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """The context as it was."""
        return get_current() if context is None else context

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Nothing is written."""

    @property
    def fields(self) -> set[str]:
        """No header."""
        return set()


def mend_empty_propagator() -> None:
    """Replace a global propagator that is made of none.

    Its `extract` gives None, which instrumentations attach as the current context; every request would fail
    with an AttributeError then. A configuration file without a `propagator` leads there.
    """
    current = propagate.get_global_textmap()
    if isinstance(current, CompositePropagator) and not current._propagators:
        propagate.set_global_textmap(NoPropagator())
