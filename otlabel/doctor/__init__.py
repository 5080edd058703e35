"""A look at scores before any label is made: are they usable, what will balance do to them, which epsilon fits.

Two passes over all rows; what needs more than that is done on a stated random sample of the rows.
"""

from __future__ import annotations

from otlabel.doctor.diagnosis import Diagnosis, Finding
from otlabel.doctor.looking import diagnose, suggest_epsilon
from otlabel.doctor.picture import draw
from otlabel.pictures import require_matplotlib

__all__ = ["Diagnosis", "Finding", "diagnose", "draw", "require_matplotlib", "suggest_epsilon"]
