"""Try what would be published: the wheel in empty environments, far from any checkout, with the tests of the sdist.

    .venv/bin/python .ci/try_dist.py FOLDER-OF-ARCHIVES TEST...

The first environment has all that the tests need, runs `otlabel demo` and the tests. The second has no torch, and runs
each command that needs none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from pathlib import Path

MAKE_INPUTS = """
import numpy as np
rng = np.random.default_rng(0)
features = rng.standard_normal((500, 8)).astype(np.float32)
np.save("features.npy", features)
np.save("scores.npy", features @ rng.standard_normal((8, 5)).astype(np.float32))
"""
WITHOUT_TORCH = (
    "otlabel assign scores.npy -o labels.h5",
    "otlabel certify scores.npy labels.h5",
    "otlabel predict scores.npy --potentials labels.h5 -o again.npy",
    "otlabel cluster features.npy -k 5 -o clusters.h5",
    "otlabel curate features.npy -n 50 -o chosen.npy",
    "otlabel doctor scores.npy",
    "otlabel report labels.h5 --scores scores.npy --features features.npy -o report.html",
)


def main(dist: Path, tests: list[str]) -> int:
    """Both environments, in a temporary folder."""
    (wheel,), (sdist,) = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    with tempfile.TemporaryDirectory(prefix="otlabel-dist-") as folder:
        work = Path(folder)
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        (unpacked,) = (path for path in work.iterdir() if path.is_dir())
        shutil.rmtree(unpacked / "otlabel")  # whatever is tried is of the wheel
        constraints = str(unpacked / "constraints.txt")

        whole = environment(work / "whole")
        extras = "[dev,exact,kmeans,report,training]"
        install(whole, "the wheel and what its tests need", "-c", constraints, f"{wheel.resolve()}{extras}")
        run(whole, "otlabel demo", work)
        run(whole, f"python -m pytest -q -m 'not slow' {' '.join(f'tests/{test}' for test in tests)}", unpacked)

        bare = environment(work / "bare")
        project = tomllib.loads((unpacked / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = [*project["dependencies"], *project["optional-dependencies"]["report"]]
        needed = [one for one in wanted if not one.startswith("torch>")]
        install(bare, "what the wheel needs, but no torch", "-c", constraints, *needed)
        install(bare, "the wheel alone", "--no-deps", str(wheel.resolve()))
        subprocess.run([bare / "python", "-c", MAKE_INPUTS], cwd=work, check=True)
        for command in WITHOUT_TORCH:
            run(bare, command, work)
    print(f"{wheel.name} and {sdist.name} work")
    return 0


def environment(folder: Path) -> Path:
    """An empty one; where its programs are."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def install(programs: Path, purpose: str, *arguments: str) -> None:
    """In a few lines."""
    script = str(Path(__file__).with_name("install.py"))
    subprocess.run([programs / "python", script, purpose, *arguments], check=True)


def run(programs: Path, command: str, folder: Path) -> None:
    """One line of a shell, whose programs are those of the environment."""
    print(f"$ {command[:100]}", flush=True)
    subprocess.run(f"{programs}/{command}", shell=True, cwd=folder, check=True)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed ({failed.returncode}): {failed.cmd}")
