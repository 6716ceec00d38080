"""Ways for the run of lr 0.02, repeat 1 to end its process."""

import ctypes
import os
import time


def patch(trainer: type, how: str) -> None:
    """Let the fourth step of that run go wrong, and all after it."""
    step = trainer.train_step
    n_steps = 0

    def train_step(self, run, batch):
        nonlocal n_steps
        if run.hyps.lr == 0.02 and run.seed == 6:
            n_steps += 1
            if n_steps >= 4:
                ACTIONS[how]()
        return step(self, run, batch)

    trainer.train_step = train_step


def _exhaust() -> None:
    raise MemoryError("out of memory")


ACTIONS = {
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(7),
    "memory": _exhaust,
    "hang": lambda: time.sleep(3600),
}
