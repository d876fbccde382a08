"""The public names: all of them importable, none of them costing anything before its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import apivitals

LEAVES = ("apivitals.errors", "apivitals.models", "apivitals.settings", "apivitals.tally", "apivitals.semconv")


@pytest.mark.parametrize("name", apivitals.__all__)
def test_a_public_name_imports(name: str) -> None:
    value = getattr(apivitals, name)
    assert value is not None
    if name != "tally":
        assert value.__name__ == name
        assert value.__module__ == apivitals._HOME[name]
        assert (value.__doc__ or "").strip()


def test_the_names_that_the_guide_uses_are_there() -> None:
    assert {
        "PerformanceMonitor",
        "PerformanceMiddleware",
        "PerformanceThresholds",
        "PerformanceAnalytics",
        "RequestMetrics",
        "EndpointMetrics",
        "SystemMetrics",
        "TimeWindow",
        "monitor_endpoint",
    } <= set(apivitals.__all__)


def test_what_type_checkers_see_is_what_there_is() -> None:
    source = (apivitals.__file__ or "").replace(".pyc", ".py")
    with open(source, encoding="utf-8") as module:
        text = module.read()
    for name, home in apivitals._HOME.items():
        package = "apivitals" if home == f"apivitals.{name}" else home
        assert f"    from {package} import {name} as {name}\n" in text


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'apivitals' has no attribute 'configured'"):
        _ = apivitals.configured
    with pytest.raises(ImportError):
        exec("from apivitals import configured", {})


def test_dir_lists_them() -> None:
    assert set(apivitals.__all__) <= set(dir(apivitals))


def modules_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import apivitals",
        "from apivitals import tally, Settings, PerformanceThresholds, RequestMetrics, TimeWindow, ConfigurationError",
        "import apivitals; apivitals.configure, apivitals.instrument, apivitals.shutdown",
        "from apivitals import mount",
    ],
)
def test_a_name_pulls_in_no_sdk_before_it_is_called(statement: str) -> None:
    loaded = modules_after(statement)
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "fastapi", "numpy", "scipy", "statsmodels", "psutil")
    assert sorted(name for name in loaded if name.startswith(heavy)) == []


def test_importing_the_package_alone_loads_nothing_else_of_it() -> None:
    assert {name for name in modules_after("import apivitals") if name.startswith("apivitals.")} == set()
