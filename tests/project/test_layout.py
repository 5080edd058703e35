"""The layering of the design, held by reading the imports, and what a bare `import otlabel` may load."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import otlabel

PACKAGE = Path(otlabel.__file__).parent

# A module may import its own layer and those before it, and nobody in a circle. The package itself holds the public
# names: only the commands may ask it for them. Its version is a text, which anybody may read.
LAYERS = (
    {"errors", "text", "marginals", "interrupts", "compiling", "progress", "pictures", "system"},
    {"sources", "ranks", "validate", "storage"},
    {"sweep"},
    {"solver"},
    {"result", "assign", "certificate"},
    {"lp", "batch", "cluster", "path", "doctor", "soft", "curation", "metrics"},
    {"selflabel"},
    {"training", "reporting", "planning"},
    {"__init__"},
    {"commands"},
    {"__main__"},
)
# Files that need what is above them: how rows are cut into blocks, and what makes scores of features.
ABOVE = {(f"sources/{name}.py", "sweep") for name in ("device", "files", "linear", "memory", "wrapped")}
ABOVE |= {("ranks/rowset.py", "sweep")}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

ONLY_IN = {
    "h5py": {
        *("sources/hdf5.py", "sources/hdf5_guard.py", "sources/hdf5_sparse.py", "storage/label_files.py"),
        *("selflabel/stores/finished.py", "selflabel/stores/head_labels.py"),
    },
    "numba": {"compiling.py", "sweep/numerics.py"},
    "llvmlite": {"compiling.py", "sweep/numerics.py"},
    "triton": {"sweep/cuda.py", "sweep/cuda_kernels.py", "sweep/batch.py"},
    "ot": {"lp.py"},
}
EAGER = {
    "torch": {"sweep/reference.py", "sweep/cuda.py", "sweep/batch.py", "soft.py"}
    | {str(f.relative_to(PACKAGE)) for f in (PACKAGE / "selflabel").glob("*.py")}
    | {
        f"training/{name}.py"
        for name in ("augment", "entry", "evaluate", "folder", "loaders", "module", "run", "setup")
    }
    | {
        f"training/{name}.py"
        for name in ("crops", "exporting", "judged", "listing", "measuring", "probes", "saved", "trainer")
    }
    | {str(f.relative_to(PACKAGE)) for f in (PACKAGE / "training/networks").glob("*.py")},
    "sklearn": {"cluster/estimator.py", "cluster/residual.py"},
}  # what is written in them, and loaded late itself


class Import(NamedTuple):
    """One imported module as a dotted name, and whether importing the file runs it."""

    name: str
    eager: bool
    typing_only: bool


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(
    node: ast.AST, package: tuple[str, ...], eager: bool = True, typing_only: bool = False
) -> Iterator[Import]:
    """Every import below a node, in order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, eager, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else ()
            base = ".".join([*above, *([child.module] if child.module else [])])
            yield Import(base, eager, typing_only)
            if base == "otlabel" or base.startswith("otlabel."):  # `from otlabel import sweep` names a module too
                yield from (Import(f"{base}.{alias.name}", eager, typing_only) for alias in child.names)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for part in child.body:
                yield from _imports(ast.Module([part], []), package, eager, True)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), package, eager, typing_only)
        else:
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, package, eager and not inner, typing_only)


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imports_of(file: Path) -> list[Import]:
    package = ("otlabel", *file.relative_to(PACKAGE).parent.parts)
    return list(_imports(ast.parse(file.read_text(encoding="utf-8")), package))


def module_of(file: Path) -> str:
    """The name that has a place in LAYERS: a module, or the folder that it is in."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def own_modules(file: Path) -> set[str]:
    """Modules of otlabel that the file imports: at its top, inside a function, or for its annotations alone."""
    found = set()
    for name, _, _ in imports_of(file):
        parts = name.split(".")
        if parts[0] == "otlabel" and len(parts) > 1 and parts[1] != "__version__":
            is_module = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
            found.add(parts[1] if is_module else "__init__")
    return found


def test_every_module_has_a_place_in_the_layering() -> None:
    assert {module_of(file) for file in source_files()} <= RANK.keys(), "give it one here and in the design"


def test_lower_layers_never_import_higher_ones() -> None:
    above = {
        (str(file.relative_to(PACKAGE)), imported) for file in source_files() for imported in own_modules(file)
        if RANK[imported] > RANK[module_of(file)]
    }  # fmt: skip
    assert above == ABOVE


def test_nobody_imports_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for file in source_files():
        excepted = {imported for name, imported in ABOVE if name == str(file.relative_to(PACKAGE))}
        edges.setdefault(module_of(file), set()).update(own_modules(file) - {module_of(file)} - excepted)
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in finished:
            for imported in sorted(edges.get(module, ())):
                visit(imported, (*path, module))
            finished.add(module)

    for module in sorted(edges):
        visit(module, ())


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_stay_where_they_belong(package: str) -> None:
    users = {
        str(file.relative_to(PACKAGE)) for file in source_files() for name, _, _ in imports_of(file)
        if name.split(".")[0] == package
    }  # fmt: skip
    assert users == ONLY_IN[package]


@pytest.mark.parametrize("package", ["torch", "ot", "matplotlib", "sklearn", "faiss", "jinja2", "h5py", "tqdm"])
def test_packages_that_load_late(package: str) -> None:
    """Imported inside functions only, and by modules that are nothing without them."""
    eager = {
        str(file.relative_to(PACKAGE)) for file in source_files() for name, eager, typing_only in imports_of(file)
        if name.split(".")[0] == package and eager and not typing_only
    }  # fmt: skip
    assert eager <= EAGER.get(package, set())


def test_the_reader_of_imports_sees_all_kinds() -> None:
    source = """
import numpy as np
from . import pool
from .pool import run
from ..errors import OtlabelError
from otlabel import sources, sinkhorn_assign
if TYPE_CHECKING:
    import torch
else:
    import h5py
def f():
    import ot.bregman
class C:
    import tqdm
    def g(self):
        from otlabel.assign import certify
"""
    found = list(_imports(ast.parse(source), ("otlabel", "sweep")))
    eager = {name for name, eager, typing_only in found if eager and not typing_only}
    assert {"numpy", "otlabel.sweep.pool", "otlabel.errors", "otlabel.sources", "h5py", "tqdm"} <= eager
    assert Import("torch", True, True) in found
    assert Import("ot.bregman", False, False) in found
    assert Import("otlabel.assign", False, False) in found


def loaded_after(statement: str) -> set[str]:
    """The packages that a fresh process holds after one statement."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.split())


def test_import_loads_no_heavy_package() -> None:
    loaded = loaded_after("import otlabel")
    assert "otlabel" in loaded
    assert loaded & {"torch", "matplotlib", "sklearn", "ot", "pandas", "jax", "faiss", "tensorflow"} == set()


def test_numpy_in_needs_no_torch() -> None:
    statement = "import numpy, otlabel; otlabel.sinkhorn_assign(numpy.eye(4, 2) + numpy.arange(4)[:, None])"
    assert "torch" not in loaded_after(statement)


def test_public_names_are_there() -> None:
    for name in ("sinkhorn_assign", "lp_assign", "certify", "Assignment", "Certificate", "Status", "Exact"):
        assert name in otlabel.__all__
        assert hasattr(otlabel, name)
