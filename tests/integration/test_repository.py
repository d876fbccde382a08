"""The repository itself: what importing costs, generated docs, locks, the Makefile and the wheel."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from apivitals import semconv
from apivitals.settings import PerformanceThresholds, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt"))
MATRIX_LOCKS = [lock for lock in LOCKS if lock.name.startswith("matrix-")]
HEAVY = ("opentelemetry.sdk", "opentelemetry.exporter", "numpy", "scipy", "pandas", "statsmodels", "redis", "fastapi")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, **options)  # type: ignore[call-overload]


# --- importing


def imported_by(statement: str) -> set[str]:
    done = run(sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)", check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import apivitals", "from apivitals import tally"])
def test_importing_the_package_pulls_in_nothing_heavy(statement: str) -> None:
    modules = imported_by(statement)
    assert "apivitals" in modules
    assert sorted(name for name in modules if name.startswith(HEAVY)) == []


def test_importing_the_package_adds_few_modules() -> None:
    """A count does not depend on the machine as milliseconds do."""
    ours = imported_by("import apivitals") - imported_by("pass")
    assert len(ours) < 40, sorted(ours)


# --- what import-linter cannot tell: it sees the namespace package opentelemetry as one


def opentelemetry_imports(source: Path) -> set[str]:
    """Modules of OpenTelemetry that a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith("opentelemetry.")}


def sources_of(wing: str) -> list[Path]:
    return sorted((ROOT / "src/apivitals").glob(f"{wing}/**/*.py" if wing != "leaves" else "*.py"))


@pytest.mark.parametrize("wing", ["leaves", "analytics", "dashboard", "optimizer"])
def test_only_those_who_produce_and_ship_know_the_sdk(wing: str) -> None:
    private = ("opentelemetry.sdk", "opentelemetry.instrumentation", "opentelemetry.exporter")
    sources = sources_of(wing)
    assert sources
    offenders = {
        source.name: sorted(n for n in opentelemetry_imports(source) if n.startswith(private)) for source in sources
    }
    assert {name: modules for name, modules in offenders.items() if modules} == {}


def test_the_sdk_would_be_found() -> None:
    found = {name for source in sources_of("telemetry") for name in opentelemetry_imports(source)}
    assert any(name.startswith("opentelemetry.sdk") for name in found)


# --- docs


def test_generated_docs_are_current() -> None:
    done = run(sys.executable, "scripts/docs.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_page_that_was_edited_by_hand_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "telemetry.md").open("a", encoding="utf-8") as page:
        page.write("one more line\n")
    done = run(sys.executable, "scripts/docs.py", "--check", "--docs", tmp_path)
    assert (done.returncode, done.stderr) == (1, "out of date: docs/telemetry.md; run  make docs\n")


def test_every_metric_and_attribute_is_documented() -> None:
    page = (ROOT / "docs/telemetry.md").read_text(encoding="utf-8")
    attributes = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    assert "apivitals.latency.class" in attributes
    names = [*semconv.INSTRUMENTS, *semconv.SHORT_NAMES, *attributes]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_setting_is_documented_with_its_variables() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for entry in fields(Settings):
        row = re.search(rf"^\| `{entry.name}` \|.*$", page, re.MULTILINE)
        assert row is not None, entry.name
        for variable in entry.metadata["otel"]:
            assert f"`{variable}`" in row[0]
    for table in fields(PerformanceThresholds):
        assert f"`APIVITALS_{table.name.upper()}`" in page


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "collector-config/README.md",
        *(ROOT / "docs").glob("*.md"),
    ],
    ids=lambda page: page.name,
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# --- locks


def pins(lock: Path) -> dict[str, set[str]]:
    """Versions by name; a universal lock can hold several of one, for different interpreters."""
    found: dict[str, set[str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line[:1].isalnum():
            continue
        requirement = Requirement(line.removesuffix("\\").strip())
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        found.setdefault(requirement.name, set()).add(specifier.version)
    return found


def requirements_of(*extras: str) -> list[Requirement]:
    """Everything that pyproject.toml asks for, with extras that name the package itself followed."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                found.extend(requirements_of(*requirement.extras))
            else:
                found.append(requirement)
    return found


def unmet(lock: Path, wanted: list[Requirement]) -> list[str]:
    pinned = pins(lock)
    return [
        str(requirement)
        for requirement in wanted
        if not pinned.get(requirement.name)
        or not all(
            requirement.specifier.contains(Version(version), prereleases=True) for version in pinned[requirement.name]
        )
    ]


def test_there_are_locks() -> None:
    assert {"dev.txt", "tools.txt", "matrix-0.115.txt", "matrix-newest.txt"} <= {lock.name for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_index_and_has_a_hash_for_every_pin(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if "://" in line or " @ " in line] == []
    assert [line for line in lines if line.startswith("-") and not line.startswith("--hash=sha256:")] == []
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_development_lock_pins_every_dependency_of_every_extra() -> None:
    assert unmet(ROOT / "requirements/dev.txt", requirements_of(*PROJECT["optional-dependencies"])) == []


@pytest.mark.parametrize("lock", MATRIX_LOCKS, ids=lambda lock: lock.stem)
def test_a_matrix_lock_pins_the_dependencies_and_its_line_of_fastapi(lock: Path) -> None:
    extra = (ROOT / "requirements/matrix.in").read_text(encoding="utf-8").splitlines()
    wanted = [*requirements_of("sql"), *(Requirement(line) for line in extra if line[:1].isalpha())]
    assert unmet(lock, wanted) == []
    line = lock.stem.removeprefix("matrix-")
    if line != "newest":
        assert all(version.startswith(f"{line}.") for version in pins(lock)["fastapi"])


# --- the Makefile and its scripts


@pytest.fixture
def make() -> str:
    found = shutil.which("make")
    if found is None:
        pytest.skip("make is not installed")
    return found


def test_make_help_lists_every_target(make: str) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    shown = run(make, check=True, env={**os.environ, "MAKEFLAGS": ""}).stdout
    assert set(re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE)) == set(phony[1].split())
    defined = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert defined == set(phony[1].split())


def test_an_interpreter_that_is_too_old_is_refused_with_a_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = run("scripts/venv", old, tmp_path / "venv", "requirements/dev.txt")
    assert done.returncode == 1
    assert f"'{old}' is Python 3.9 and apivitals needs 3.10 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_without_ensurepip_is_refused_with_a_remedy(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; *print*) echo 3.12 ;; esac\n')
    bare.chmod(0o755)
    done = run("scripts/venv", bare, tmp_path / "venv", "requirements/dev.txt")
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


@pytest.fixture
def poor_path(tmp_path: Path) -> str:
    """A PATH with what a shell script needs and no server, no apt-get and no root."""
    commands = {"sh", "cat", "cut", "paste"}
    for name in commands:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    for stub in ("id", "uname"):
        (tmp_path / stub).chmod(0o755)
    return str(tmp_path)


def services(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("/bin/sh", "scripts/services", *arguments, env={"PATH": path})


def test_services_check_names_what_is_missing(poor_path: str) -> None:
    done = services(poor_path, "--check")
    assert done.returncode == 1
    assert re.findall(r"^  ([a-z-]+): ", done.stdout, re.MULTILINE) == ["prometheus", "redis-server"]


def test_services_says_how_where_it_cannot_install(poor_path: str) -> None:
    done = services(poor_path)
    assert done.returncode == 0, done.stderr
    assert "brew install prometheus redis\n" in done.stdout


def test_services_is_content_when_all_are_there(poor_path: str) -> None:
    for name in ("prometheus", "redis-server"):
        Path(poor_path, name).symlink_to("/bin/sh")
    assert (services(poor_path).returncode, services(poor_path, "--check").returncode) == (0, 0)


def test_ci_runs_targets_that_exist() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    targets = re.search(r"for target in (.*); do", script.read_text(encoding="utf-8"))
    assert targets is not None
    assert targets[1].split() == ["services", "check", "test", "test-matrix"]
    assert run("bash", "-n", script).returncode == 0


# --- the collector


def test_the_collector_configuration_is_complete_and_stays_on_loopback() -> None:
    """Whether the collector accepts it, only a collector can tell; this is what a typing mistake breaks."""
    config = yaml.safe_load((ROOT / "collector-config/agent.yaml").read_text(encoding="utf-8"))
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    assert set(config["service"]["pipelines"]) == {"metrics", "traces", "logs"}
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        for kind, names in pipeline.items():
            used[kind].update(names)
    assert used == {kind: set(config[kind]) for kind in used}
    protocols = config["receivers"]["otlp"]["protocols"].values()
    endpoints = [*(protocol["endpoint"] for protocol in protocols), config["exporters"]["prometheus"]["endpoint"]]
    assert [endpoint for endpoint in endpoints if not endpoint.startswith("127.0.0.1:")] == []
    # The file exporter refuses to append and to rotate at once, and grows without end when it does neither.
    files = [exporter for name, exporter in config["exporters"].items() if name.startswith("file/")]
    assert all("rotation" in exporter and "append" not in exporter for exporter in files)


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_marker_the_example_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licenses = [name for name in names if name.endswith("/licenses/LICENSE")]
        assert "apivitals/py.typed" in names
        assert "apivitals/_examples/shop/__init__.py" in names
        assert b"Apache License" in archive.read(licenses[0])
    assert not [name for name in names if not name.startswith(("apivitals/", "apivitals-"))]


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "src"
    wanted = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix in (".py", ".html", ".css", ".js", ".j2", ".typed")
    }
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(wanted - set(archive.namelist())) == []


def test_the_wheel_has_the_entry_points(wheel: Path) -> None:
    parser = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        parser.read_string(archive.read(name).decode())
    assert parser["opentelemetry_distro"]["apivitals"].endswith(":ApiVitalsDistro")
    assert parser["opentelemetry_configurator"]["apivitals"].endswith(":ApiVitalsConfigurator")
    assert "apivitals" in parser["console_scripts"]
