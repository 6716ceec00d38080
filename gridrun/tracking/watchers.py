"""The callbacks of a run, told of what happens; none can stop or change it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from gridrun import plugin_files
from gridrun.config import Hyperparams
from gridrun.errors import ConfigError
from gridrun.tracking.callback import Callback
from gridrun.tracking.trackers import TRACKERS, make_tracker

logger = logging.getLogger(__name__)


class Watchers:
    """Callbacks that are told of the same things.

    Args:
        callbacks: Their names and the objects.
    """

    def __init__(self, callbacks: Iterable[tuple[str, Callback]] = ()) -> None:
        self.callbacks = dict(callbacks)
        self.errors: dict[str, str] = {}

    @classmethod
    def of(cls, hyps: Hyperparams) -> Watchers:
        """The trackers that the keys name; one that cannot be made is left out."""
        made = cls()
        for name in hyps.trackers:
            try:
                made.callbacks[name] = tracker(hyps, name)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - told once, and harmless
                made.leave_out(name, error)
        return made

    def tell(self, event: str, *about: Any) -> None:
        """Call the method of that name of every callback."""
        if not self.callbacks:
            return
        from gridrun.training.seeding import kept_globals

        for name, callback in list(self.callbacks.items()):
            try:
                with kept_globals():
                    getattr(callback, event)(*about)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - told once, and harmless
                self.leave_out(name, error)

    def leave_out(self, name: str, error: BaseException) -> None:
        """Tell of a failure once, and call that one no more."""
        self.callbacks.pop(name, None)
        self.errors[name] = f"{type(error).__name__}: {error}"
        logger.warning("%s fails and is left out: %s", name, self.errors[name])


def tracker(hyps: Hyperparams, name: str) -> Callback:
    """A tracker of ours, or a plug-in derived from `Callback`.

    Raises:
        ConfigError: If a plug-in is absent or refuses its arguments.
    """
    args = hyps.tracker_args.get(name, {})
    if name in TRACKERS:
        plugin_files.refuse_clash("trackers", name, hyps.plugins)
        return make_tracker(name, args)
    entry = {"class": name, "args": args}
    made = plugin_files.make("trackers", entry, hyps.plugins, TRACKERS)
    if not isinstance(made, Callback):
        raise ConfigError(f"trackers: {name} does not derive from Callback")
    return made
