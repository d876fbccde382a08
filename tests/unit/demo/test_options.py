from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from apivitals.demo import options
from apivitals.demo.options import Options, check_extra, prepare
from apivitals.errors import ConfigurationError, MissingExtraError


def test_what_is_left_out_has_its_default():
    assert Options.of(None) == Options(120.0, Path("apivitals-demo"), 80.0, 1)
    assert Options.of(Namespace(seconds=60.0, out=None)) == Options(seconds=60.0)


@pytest.mark.parametrize("values", [{"seconds": 5}, {"seconds": float("inf")}, {"rps": 0}, {"rps": -3}, {"rps": 1001}])
def test_values_that_make_no_sense(values: dict[str, float]):
    with pytest.raises(ConfigurationError, match=f"{next(iter(values.values())):g}"):
        Options(**values)  # type: ignore[arg-type]


def test_a_short_run_takes_snapshots_more_often():
    assert Options(seconds=600).interval_seconds == 5
    assert Options(seconds=120).interval_seconds == 5
    assert Options(seconds=60).interval_seconds == 2
    assert Options(seconds=30).interval_seconds == 1


def test_a_second_demo_clears_what_the_first_one_left(tmp_path: Path):
    with prepare(tmp_path / "out") as folder:
        (folder / "data").mkdir()
        (folder / "data" / "old").touch()
        (folder / "report.html").touch()
    with prepare(tmp_path / "out") as again:
        assert again == folder
        assert not (folder / "data").exists()


def test_two_demos_at_once_need_two_folders(tmp_path: Path):
    with prepare(tmp_path / "out") as folder:
        (folder / "data").mkdir()
        with pytest.raises(ConfigurationError, match="another demo is running"), prepare(tmp_path / "out"):
            pass
        assert (folder / "data").exists()
        with prepare(tmp_path / "other"):
            pass


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(ConfigurationError, match="no demo made"), prepare(tmp_path):
        pass
    assert (tmp_path / "data" / "precious").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"), prepare(tmp_path / "file" / "out"):
        pass


def test_the_extra_is_there_and_each_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    check_extra()
    monkeypatch.setitem(options._NEEDED, "no_such_package.part", "no-such-package")
    with pytest.raises(MissingExtraError, match=r"pip install 'apivitals\[demo\]'") as caught:
        check_extra()
    assert "no-such-package" in str(caught.value)
