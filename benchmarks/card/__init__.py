"""The parts of `gpu_check.py`, and where it finds what they need: the checkout's package, and problems of the tests."""

import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "gpu_check.py"
ROOT = SCRIPT.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
