"""Lets the loss of the run of lr 0.02, repeat 1 become NaN or infinite at a step."""

import functools
import json


def _at(step: int, value: float) -> None:
    from imgclass.trainer import ImageTrainer

    loops = ImageTrainer.loops
    n_steps = 0

    def spoiled(loop, self, run, batch, x):
        nonlocal n_steps
        terms = loop(self, run, batch, x)
        if run.hyps.lr == 0.02 and run.seed == 6:
            n_steps += 1
            path = run.folder.path / "steps.json"
            path.write_text(json.dumps(n_steps), encoding="utf-8")
            if n_steps == step:
                terms["loss"] = terms["loss"] * value
        return terms

    for name, loop in dict(loops).items():
        loops[name] = functools.partial(spoiled, loop)


def __getattr__(name: str) -> object:
    _, step, value = name.split("_")
    return lambda: _at(int(step), float(value))
