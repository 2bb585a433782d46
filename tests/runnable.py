"""Which x86-64 levels this CPU executes: numbers are tested on those, code for the others is only built."""

from __future__ import annotations

from tcomp.target.host import missing_features
from tcomp.target.target import TARGETS

LEVELS = ("x86-64-v4", "x86-64-v3")
"""Widest first."""
RUNNABLE = tuple(name for name in LEVELS if not missing_features(TARGETS[name]))
WIDEST = TARGETS[RUNNABLE[0]]
