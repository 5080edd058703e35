"""The picture: class sizes before and after balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otlabel.doctor.diagnosis import Diagnosis
from otlabel.pictures import require_matplotlib, sizes_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(diagnosis: Diagnosis) -> Figure:
    """Class sizes by the best class alone and after balance, each from large to small.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ValueError: no row of the scores is usable.
    """
    require_matplotlib()
    if not diagnosis.argmax_sizes:
        raise ValueError("no row of the scores is usable: there are no class sizes to draw")
    return sizes_figure(np.array(diagnosis.argmax_sizes), np.array(diagnosis.balanced_sizes))
