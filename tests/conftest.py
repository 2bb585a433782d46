"""Settings for every test: hypothesis without deadlines (the machine's speed varies), one BLAS thread."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tcomp", deadline=None, max_examples=100)
settings.load_profile("tcomp")
