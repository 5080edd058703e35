"""What can go wrong, each with its remedy, and how a warning is given. Nothing else may go in here.

Every error of the library is an `OtlabelError`; each is also the built-in error a caller would expect.
"""

from __future__ import annotations

import re
import sys
import warnings


class OtlabelError(Exception):
    """Base of every error that otlabel raises on purpose."""


class InvalidScoresError(OtlabelError, ValueError):
    """The scores hold something that is no score: NaN, +inf, a wrong number of dimensions, no rows."""


class InvalidMassError(OtlabelError, ValueError):
    """Class masses of the wrong length or sign, or that sum neither to 1 (shares) nor to N (counts)."""


class InfeasibleError(OtlabelError, ValueError):
    """No assignment meets the class sizes, because forbidden pairs (-inf) leave too few choices."""


class FileFormatError(OtlabelError, ValueError):
    """A file is not what its name or its contents claim, or holds nothing under the name asked for."""


class FingerprintError(OtlabelError, ValueError):
    """Something was stored about other data, or by another model, than what it is now wanted for."""


class ExtractionError(OtlabelError, RuntimeError):
    """Rows were asked for before they were extracted, or written to a store that does not take any now."""


class RankError(OtlabelError, RuntimeError):
    """Another process of the group failed, was lost, or was called with something else."""


class MissingPackageError(OtlabelError, ImportError):
    """An optional package is needed here; the message is the line that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed for this: pip install {_brought_by(extra)} (the extra otlabel[{extra}])")


def _brought_by(extra: str) -> str:
    """The packages of an extra: they are to be had by name, wherever otlabel itself was installed from."""
    from importlib import metadata  # here, for it takes as long to load as all that `--help` needs

    try:
        lines = metadata.requires("otlabel") or []
    except metadata.PackageNotFoundError:  # a source folder on the path
        lines = []
    found = [re.match(rf'([^;]+?) *; *extra == ["\']{extra}["\']$', line) for line in lines]
    return " ".join(f'"{one[1]}"' for one in found if one) or f'"otlabel[{extra}]"'


class OtlabelWarning(UserWarning):
    """Base of every warning that otlabel gives."""


class ConvergenceWarning(OtlabelWarning):
    """The entropic plan stopped short of its tolerance; exact labels are exact all the same."""


class DegenerateScoresWarning(OtlabelWarning):
    """The answer is right, but the scores are probably not what was meant: constant, or no logarithms."""


class FewSamplesWarning(OtlabelWarning):
    """There are fewer samples than classes: some classes stay empty."""


class SelfLabelWarning(OtlabelWarning):
    """Signs that self-labelling goes wrong: a loss that is stuck, labels that never settle, features that collapse."""


def warn(category: type[Warning], message: str) -> None:
    """Warn at the line that called otlabel."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("otlabel."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
