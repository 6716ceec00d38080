"""`python -m gridrun` is `gridrun`."""

import sys

from gridrun.cli import main

sys.exit(main())
