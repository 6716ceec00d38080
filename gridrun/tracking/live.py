"""The latest examples.png of a sweep, live in a notebook or a window."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WITHOUT_WINDOW = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}
logger = logging.getLogger(__name__)


class LivePlot:
    """Shows pictures that runs have written; where there is no place for it, nothing.

    Args:
        folders: Of the runs, by number.
    """

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self.folders = folders
        self._shown: Any = None
        self._show = self._in_notebook if is_notebook() else self._in_window
        self.is_on = is_notebook() or has_window()

    def refresh(self, number: int) -> None:
        """Show the picture of a run; a failure ends the showing, nothing else."""
        path = self.folders[number] / "examples.png"
        if not self.is_on or not path.exists():
            return
        try:
            self._show(path)
        except Exception as error:  # noqa: BLE001 - told, and harmless
            self.is_on = False
            logger.warning("show_plots: cannot show %s: %s", path, error)

    def _in_notebook(self, path: Path) -> None:
        from IPython import display as notebook

        show: Any = notebook
        image = show.Image(data=path.read_bytes())
        if self._shown is None:
            self._shown = show.display(image, display_id=True)
        else:
            self._shown.update(image)

    def _in_window(self, path: Path) -> None:
        from matplotlib import pyplot

        if self._shown is None:
            pyplot.ion()
            self._shown = pyplot.figure(num="examples")
        self._shown.clear()
        axis = self._shown.add_axes((0, 0, 1, 1))
        axis.imshow(pyplot.imread(path))
        axis.set_axis_off()
        self._shown.canvas.draw_idle()
        self._shown.canvas.flush_events()


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def has_window() -> bool:
    """Whether windows can be opened, and matplotlib would."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    import matplotlib

    backend = str(matplotlib.get_backend()).lower()
    return backend not in WITHOUT_WINDOW and not backend.startswith("module://")
