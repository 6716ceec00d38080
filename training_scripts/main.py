"""Train a grid: python3 main.py hyperparams.json hyperranges.json [key=value ...]

The same as `gridrun run`; `python3 main.py --help` lists the options.
"""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is half imported

try:
    from gridrun.cli import main
except ImportError as error:
    sys.stderr.write(
        f"error: {error}. Install the repository for this Python: `make demo` makes "
        "an environment, `source .venv/bin/activate` uses it.\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
