"""Runs in Weights & Biases."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gridrun.errors import ConfigError
from gridrun.run import RunState
from gridrun.tracking.callback import Callback
from gridrun.tracking.trackers import (
    Findings,
    configuration,
    facts,
    finite,
    numbers,
    run_key,
    sweep_name,
)

if TYPE_CHECKING:
    from gridrun.training.cohort import LiveRun

EXIT_CODES = {RunState.DONE: 0, RunState.INTERRUPTED: 255}  # 255: killed; others: 1
UPLOAD_S = 60.0  # what is not uploaded then stays on disk, for `wandb sync`


class WandB(Callback):
    """A W&B run in `<run folder>/tracking/wandb/`; runs of a sweep are a group.

    Offline runs need no account; `wandb sync <sweep folder>/*/tracking/wandb/*run-*`
    uploads them. A resumed run has the same id and is written anew from its table,
    without the diagnostics of earlier attempts, which stay in the run's folder; of a
    run that is online W&B keeps what it has of them, and ignores steps told again.
    It prints nothing and asks for nothing.

    Args:
        project: Where its runs appear; default: the sweep's name.
        entity: User or team; default: the account's.
        mode: online or offline; default: WANDB_MODE, else offline.
        tags: Of its runs.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        super().__init__(project=project, entity=entity, mode=mode, tags=tags)
        self._run: Any = None

    def on_run_start(self, run: LiveRun, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin anew with the epochs that the run has.

        Raises:
            ConfigError: If it is to be online and nobody is logged in.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = run.folder.path / "tracking"
        if (folder / "wandb").exists():
            shutil.rmtree(folder / "wandb")
        folder.mkdir(exist_ok=True)
        settings = wandb.Settings(**self._of_run(run), **_quiet(), root_dir=str(folder))
        if settings.mode == "online":  # offline it is refused with a warning
            settings.resume = "allow"
        config = configuration(run) | {"gridrun": facts(run)}
        try:
            with _exit_unchanged():
                _log_in(settings)
                self._run = wandb.init(config=config, settings=settings)
        except Exception:
            _stop_service()
            raise
        for row in rows:
            self.on_epoch_end(run, row)

    def _of_run(self, run: LiveRun) -> dict[str, Any]:
        """Settings that tell this run from others."""
        return {
            "mode": self.args["mode"] or os.environ.get("WANDB_MODE", "offline"),
            "project": self.args["project"] or sweep_name(run),
            "entity": self.args["entity"],
            "run_tags": tuple(self.args["tags"] or ()),
            "run_id": run_key(run),
            "run_name": run.folder.path.name,
            "run_group": sweep_name(run),
        }

    def on_epoch_end(self, run: LiveRun, row: Mapping[str, Any]) -> None:
        """Log an epoch; the next one ends it."""
        self._run.log(numbers(row), step=row["epoch"])

    def on_diagnostic(
        self, run: LiveRun, name: str, epoch: int, found: Mapping[str, Any]
    ) -> None:
        """Log scalars, histograms and images with their epoch."""
        import wandb

        sorted_ = Findings.of(name, found)
        logged: dict[str, Any] = dict(sorted_.scalars)
        for path, array in sorted_.arrays.items():
            if (flat := finite(array)).size:
                logged[path] = wandb.Histogram(flat)
        for path, figure in sorted_.figures.items():
            logged[path] = wandb.Image(_picture(figure))
        self._run.log(logged, step=epoch)

    def on_run_end(
        self, run: LiveRun, state: RunState, metrics: Mapping[str, float]
    ) -> None:
        """Put test scores and state into the summary, and finish."""
        if self._run is None:  # it failed before its first step
            self.on_run_start(run, run.folder.epochs.read())
        end = {"state": state.value, "error": run.record.get("error")}
        try:
            self._run.summary.update({**metrics, **end})
            self._run.finish(exit_code=EXIT_CODES.get(state, 1))
        finally:
            _stop_service()


def _quiet() -> dict[str, Any]:
    """Settings for runs side by side of which only what we log is recorded."""
    return {
        "reinit": "create_new",
        "silent": True,
        "console": "off",
        "symlink": False,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "allow_val_change": True,
        "finish_timeout": UPLOAD_S,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }


def _picture(figure: Any) -> Any:
    """A figure as an image; W&B would look for pyplot, which is not loaded."""
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)


def _log_in(settings: Any) -> None:
    """Use the stored account where one is needed; never ask."""
    import wandb

    if settings.mode not in ("online", "shared", "run"):
        return
    wandb.setup(wandb.Settings(mode=settings.mode, silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "wandb: nobody is logged in; give `wandb login`, set WANDB_API_KEY or "
            "choose the mode offline"
        )


@contextlib.contextmanager
def _exit_unchanged() -> Iterator[None]:
    """W&B wraps `sys.exit` at each start of its service and never unwraps it."""
    kept = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = kept


def _stop_service() -> None:
    """End W&B's process once no run of this process needs it."""
    import wandb

    if wandb.setup().most_recent_active_run is not None:
        return
    try:
        wandb.teardown()
    except SystemExit as error:  # its process was killed, say
        raise RuntimeError(f"wandb: its service ended with {error.code}") from error
