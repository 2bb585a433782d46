"""`python -m tcomp` is the command `tcomp`."""

import sys

from tcomp.cli import main

sys.exit(main())
