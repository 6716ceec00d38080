"""`python -m gridrun` is `gridrun`."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is half imported

from gridrun.cli import main  # noqa: E402

sys.exit(main())
