"""What is said of packages is true: floors, constraints, extras that errors name, and what distributions hold."""

from __future__ import annotations

import ast
import email
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from floors import floors, pinned, requirements
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")


def test_every_package_has_one_floor() -> None:
    assert {name: versions for name, versions in requirements().items() if len(versions) != 1} == {}


def test_constraints_hold_every_package_not_below_its_floor() -> None:
    for name, floor in floors().items():
        if name != "faiss-gpu-cu12":  # never beside faiss-cpu
            assert Version(pinned()[name]) >= Version(floor), name


def test_python_versions_agree() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    classifiers = [found[1] for one in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", one))]
    assert classifiers[0] == oldest
    for page in ("README.md", "docs/index.md", "docs/description.md", "docs/start.md"):
        assert re.findall(r"Python (3\.\d+)", (ROOT / page).read_text(encoding="utf-8")) == [oldest], page


def test_floors_that_the_start_names_are_those_of_the_metadata() -> None:
    listed = re.search(r"Python 3\.\d+ or newer with (.+?) or newer", START, re.DOTALL)
    named = dict(re.findall(r"(\w+) ([\d.]+)", listed[1]))
    assert len(named) == 5
    assert {name.lower(): {floor} for name, floor in named.items()}.items() <= requirements().items()


# ---- extras ----


def closure(extra: str) -> set[str]:
    """The packages that an extra brings, through those that it names."""
    found = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        found |= set().union(*map(closure, requirement.extras)) if requirement.name == "otlabel" else {requirement.name}
    return found


def named_for_missing() -> list[tuple[str, str]]:
    """Package and extra of each MissingPackageError of the library, where both are written there."""
    found = []
    for file in (ROOT / "otlabel").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingPackageError":
                values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                if len(values) == 2:
                    found.append((values[0].split()[0].lower(), values[1]))
    return found


def test_extras_that_errors_name_bring_the_package() -> None:
    assert len(named_for_missing()) >= 9
    for package, extra in named_for_missing():
        assert {package, f"pytorch-{package}"} & closure(extra), f"{package} is not in [{extra}]"


@pytest.mark.parametrize("folder", ["otlabel", "docs", "examples", "benchmarks", "README.md"])
def test_extras_that_anything_names_exist(folder: str) -> None:
    files = [ROOT / folder] if (ROOT / folder).is_file() else [
        file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".md", ".rst", ".toml", ".jinja")
    ]  # fmt: skip
    for file in files:
        text = file.read_text(encoding="utf-8")
        for extras in re.findall(r"""(?:otlabel|["' ]\.)\[([a-z, -]+)\]""", text):
            assert set(extras.replace(" ", "").split(",")) <= set(EXTRAS), f"{file}: [{extras}]"


# ---- distributions ----


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution and a wheel of the files that git knows."""
    if importlib.util.find_spec("setuptools") is None or Version(version("setuptools")) < Version("77"):
        pytest.skip("the build needs setuptools>=77")
    clone, folder = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    script = f"from setuptools.build_meta import *; build_sdist({str(folder)!r}); build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def tracked() -> set[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git: {listed.stderr}")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_source_distribution_holds_the_repository(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert tracked() - held == set()
    assert {name for name in held - tracked() if not name.startswith("otlabel.egg-info/")} == {"PKG-INFO"}


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked() if name.startswith("otlabel/")}


def test_links_of_the_description_work_anywhere(built: Path) -> None:
    """On a package index, where no file of the repository is."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        metadata = email.message_from_bytes(
            archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA")))
        )
    text = metadata.get_payload()
    assert "from otlabel import sinkhorn_assign" in text
    assert [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")] == []
    assert metadata.get_all("Project-URL")
