"""The hyperparameters that every library has, and how they hang together."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from gridrun.config.cluster_args import ARGS, args_problems
from gridrun.config.declare import Key, key
from gridrun.config.messages import shown, suggest
from gridrun.config.runner_keys import RunnerKeys

EVERY = 5  # epochs from one diagnosis to the next, if not told
NORMALIZERS = ("none", "global", "per_channel", "per_sample")
DISTORTERS = ("gaussian", "jitter", "dropout")


def class_name(entry: Any) -> str:
    """The class of a value that is a name or `{"class", "args"}`."""
    return str(entry.get("class", "")) if isinstance(entry, Mapping) else str(entry)


class Hyperparams(RunnerKeys):
    """The keys that every library has; values are final once `resolved`."""

    loops: ClassVar[tuple[str, ...]] = ("train_loop",)
    is_pair_data: ClassVar[bool] = False  # whether data can be pairs
    also_of_models: ClassVar[tuple[str, ...]] = ()  # other keys that models may read

    exp_name: str = key(
        ...,
        "name of the sweep: its folder, and the first part of each run folder's name",
        group="sweep",
        identity="no",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$",
        max_length=100,
        expected="at most 100 letters, digits, '.', '_' or '-', not '.' first",
    )
    n_repeats: int = key(
        1,
        "trainings per grid point, each with another seed; the innermost loop",
        group="sweep",
        identity="no",
        ge=1,
    )
    seed: int | None = key(
        None,
        "repeat r of every grid point has seed + r; null: drawn once per sweep from "
        "the clock, recorded, and reused on resuming",
        group="sweep",
        ge=0,
        le=2**31 - 1,
    )
    split_seed: int | None = key(
        None,
        "seeds the random train/validation split, nothing else; null: the base seed",
        group="sweep",
        ge=0,
        le=2**31 - 1,
    )
    save_every_epoch: bool = key(
        False,
        "keep the checkpoint of every epoch; false: of the last and the best",
        group="sweep",
        identity="no",
    )
    starting_exp_num: int | None = key(
        None,
        "number of the first new run; null: the next free one",
        group="sweep",
        identity="no",
        ge=0,
        le=10**9,
    )
    skip_nums: list[int] | None = key(
        None, "numbers of runs that are not trained", group="sweep", identity="no"
    )

    model_type: str = key(..., "class of the model", group="model")

    data_root: str | None = key(
        None,
        "folder of the data sets; null: GRIDRUN_DATA, else ~/experiments/data",
        group="data",
        identity="no",
        is_path=True,
    )
    dataset: str = key(
        ...,
        "folder of the data set under data_root",
        group="data",
        pattern=r"^[^/\\]+$",
        expected="the name of a folder, without a path",
    )
    shuffle: bool = key(
        True,
        "a new seeded order of the training samples each epoch; frames inside a "
        "window never move, validation and test are never shuffled",
        group="data",
    )
    val_p: float = key(
        0.1, "share of the training data used for validation", group="data", gt=0, lt=1
    )
    val_loc: Literal["beginning", "middle", "end"] = key(
        "end", "where the validation block lies", group="data"
    )
    n_workers: int = key(
        0,
        "processes that read batches ahead; of use where the data do not fit in memory",
        group="data",
        identity="no",
        ge=0,
    )

    train_loop: str = key(
        "train_loop", "named training procedure of the Trainer", group="training"
    )
    lossfxn: str = key(..., "the loss of a prediction", group="training")
    batch_size: int = key(..., "samples per training step", group="training", ge=1)
    n_epochs: int = key(..., "passes over the training samples", group="training", ge=1)
    lr: float = key(..., "initial learning rate", group="training", gt=0, le=1e38)
    l2: float = key(
        0.0,
        "weight_decay of the optimizer, on all parameters",
        group="training",
        ge=0,
        le=1e38,
    )
    l1: float = key(
        0.0,
        "training loss adds l1 times the batch mean of the sum over units of |output|",
        group="training",
        ge=0,
        le=1e38,
    )
    optimizer: str = key("Adam", "class in torch.optim", group="training")
    optimizer_args: dict[str, Any] = key(
        {},
        "arguments of the optimizer; lr and weight_decay in it are read as lr and l2",
        group="training",
    )
    scheduler: str | None = key(
        None,
        "class in torch.optim.lr_scheduler, stepped once an epoch after validation",
        group="training",
    )
    scheduler_args: dict[str, Any] | None = key(
        None,
        "arguments of the scheduler; null: T_max n_epochs for CosineAnnealingLR, "
        "factor .5 and patience 8 for ReduceLROnPlateau, milestones [10, 20, 30] for "
        "MultiStepLR, else torch's own",
        group="training",
    )
    monitor: str = key(
        "val_loss",
        "the metric that plateau schedulers, early stopping and the best epoch "
        "follow: val_loss, val_acc, loss, or another as name:max or name:min",
        group="training",
    )
    early_stop_patience: int | None = key(
        None,
        "stop after so many epochs in a row without improvement",
        group="training",
        ge=1,
    )

    @classmethod
    def model_defaults(cls, model_type: str) -> Mapping[str, object]:
        """Defaults of a model class that differ from the keys' own."""
        return {}

    def work(self) -> float:
        """Estimated time of the run in any unit; balances cohorts over workers."""
        return float(self.n_epochs)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, message) for values that contradict each other."""
        for name in ("workers", "cohort_size"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                yield name, f'expected "auto" or an integer ≥ 1, got {value}'
        if self.spectra_cache_mib != "auto" and self.spectra_cache_mib < 0:
            text = f'expected "auto" or an integer ≥ 0, got {self.spectra_cache_mib}'
            yield "spectra_cache_mib", text
        if self.seed is not None and self.seed + self.n_runs > 2**31:
            yield "seed", f"seed + n_repeats must stay within 2³¹, got {self.seed}"
        yield from self._seed_problems()
        weights = self.init_weights_path
        if weights is not None and not Path(weights).is_file():
            yield "init_weights_path", f"no file {weights}"
        if self.early_stop_min_delta and self.early_stop_patience is None:
            yield "early_stop_min_delta", "needs early_stop_patience"
        if self.skip_nums is not None and any(n < 0 for n in self.skip_nums):
            yield "skip_nums", f"expected numbers ≥ 0, got {shown(self.skip_nums)}"
        if self.dataset in (".", ".."):
            yield "dataset", f"expected the name of a folder, got {self.dataset!r}"
        yield from self._monitor_problems()
        yield from self._option_problems()

    def _monitor_problems(self) -> Iterable[tuple[str, str]]:
        metric, sign, mode = self.monitor.partition(":")
        known = self.metrics()
        if metric not in known and self.train_loop in self.loops:
            yield "monitor", f"unknown metric {metric!r}{suggest(metric, known)}"
        elif sign and mode not in ("max", "min"):
            yield "monitor", f"expected {metric}:max or {metric}:min"
        elif not mode and metric not in ("val_loss", "val_acc", "loss"):
            yield "monitor", f"say what is better: {metric}:max or {metric}:min"

    def _option_problems(self) -> Iterable[tuple[str, str]]:
        """Options that need others."""
        if self.distorter_args and self.distorter is None:
            yield "distorter_args", "needs a distorter"
        if self.engine == "stacked" and self.precision == "bfloat16":
            yield "engine", "stacked does not train in bfloat16; use graph or solo"
        if self.show_plots and not self.val_example_indices:
            yield "show_plots", "needs val_example_indices: the samples to draw"
        indices = self.val_example_indices
        if any(index < 0 for index in indices) or len(set(indices)) < len(indices):
            text = f"expected distinct integers ≥ 0, got {shown(indices)}"
            yield "val_example_indices", text
        for name in sorted(set(self.tracker_args) - set(self.trackers)):
            yield "tracker_args", f"{name} is not in trackers"
        for name, args in self.tracker_args.items():
            if not isinstance(args, dict):
                yield "tracker_args", f"{name}: expected an object, got {shown(args)}"
        for text in args_problems(self.executor, self.executor_args):
            yield "executor_args", text
        if self.is_pair_data:
            return
        if self.dataset_args:
            yield "dataset_args", "of plug-in data sets only, which `general` has"
        for name in ("use_preset", "loss_space", "eval_space"):
            if getattr(self, name) != defaults_of(type(self))[name]:
                yield name, "of pair data only, which plug-in data sets can be"

    def _seed_problems(self) -> Iterable[tuple[str, str]]:
        """Three ways to say how often and with what seeds; one at a time."""
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                yield "seeds", f"expected distinct seeds, got {shown(self.seeds)}"
            elif not all(0 <= seed < 2**31 for seed in self.seeds):
                yield "seeds", f"expected seeds from 0 to 2³¹ - 1, got {self.seeds}"
            for name in ("seed", "n_repeats", "bootstrap"):
                if getattr(self, name) != defaults_of(type(self))[name]:
                    yield "seeds", f"given together with {name}; keep one of them"
        if self.bootstrap and self.n_repeats != 1:
            yield "bootstrap", "given together with n_repeats; keep one of them"
        if self.bootstrap and self.bootstrap_index is not None:
            yield "bootstrap", "given together with bootstrap_index; keep one of them"

    @property
    def is_on_cluster(self) -> bool:
        """Whether other machines train."""
        return self.executor in ARGS

    @property
    def base_seed(self) -> int | None:
        """The seed of repeat 0, if it is given."""
        return self.seeds[0] if self.seeds else self.seed

    @property
    def n_runs(self) -> int:
        """Trainings of this configuration."""
        if self.seeds is not None:
            return len(self.seeds)
        return self.bootstrap or self.n_repeats

    def notices(self) -> Iterable[tuple[str, str]]:
        """Yield (key, message) for settings that are allowed but seldom meant."""
        for entry in self.diagnostics:
            given: Any = {"name": entry} if isinstance(entry, str) else entry
            every, at = given.get("every", EVERY), given.get("at", "epoch_end")
            is_late = isinstance(every, int) and every > self.n_epochs
            if at == "epoch_end" and is_late:
                text = f"{given.get('name')} is due every {every} epochs"
                yield "diagnostics", f"{text}, of which there are {self.n_epochs}"

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that each epoch records."""
        return ("val_loss", "val_acc", "loss", *(("l1_term",) if self.l1 else ()))

    def resolved(self) -> dict[str, object]:
        """Final values of keys whose null means "follows from others"."""
        args = self.scheduler_args
        if args is None and self.scheduler is not None:
            usual: dict[str, dict[str, Any]] = {
                "CosineAnnealingLR": {"T_max": self.n_epochs},
                "ReduceLROnPlateau": {"factor": 0.5, "patience": 8},
                "MultiStepLR": {"milestones": [10, 20, 30]},
            }
            args = usual.get(self.scheduler, {})
        values: dict[str, object] = {"scheduler_args": args}
        return values

    def inactive(self, reads: frozenset[str]) -> dict[str, str]:
        """Keys that act on nothing under these settings, each with the reason.

        Args:
            reads: The parameters of the model's constructor.
        """
        groups = keys_of(type(self))
        always = {"model_type", "img_shape"}
        reasons = {
            name: f"{self.model_type} does not use it"
            for name, facts in groups.items()
            if facts.group == "model" and name not in reads | always
        }
        if self.val_set is not None:
            for name in ("val_p", "val_loc"):
                reasons[name] = "val_set holds the validation samples"
        if self.train_loop not in self.loops:
            reasons["l1"] = f"{self.train_loop} adds its own terms"
        if self.scheduler is None:
            reasons["scheduler_args"] = "needs a scheduler"
        if self.early_stop_patience is None:
            reasons["early_stop_min_delta"] = "needs early_stop_patience"
        if not self.is_on_cluster:
            reasons["executor_args"] = "needs a cluster as executor"
        if self.executor == "ray":
            reasons["workers"] = "Ray starts as many as have room"
            reasons["hang_timeout_s"] = "Ray's tasks are not watched"
        return reasons

    def for_models(self) -> dict[str, Any]:
        """What a model's constructor may take by the name of a key."""
        groups = keys_of(type(self))
        names = [name for name, facts in groups.items() if facts.group == "model"]
        return {name: getattr(self, name) for name in [*names, *self.also_of_models]}

    def plugin_names(self) -> Iterable[str]:
        """Names in these settings that a plug-in may define, or an import path."""
        yield self.model_type
        if self.train_loop not in self.loops:
            yield self.train_loop
        if self.distorter not in (None, *DISTORTERS):
            yield str(self.distorter)
        for entry in self.augmenters:
            yield class_name(entry)
        normalizer = getattr(self, "normalizer", "none")
        if normalizer not in NORMALIZERS:
            yield class_name(normalizer)

    def identity_value(self, name: str) -> object:
        """The part of a key's value that acts."""
        value = getattr(self, name)
        if name == "init_weights_path" and value is not None:
            return weights_hash(Path(value))
        return value

    def monitor_mode(self) -> tuple[str, Literal["min", "max"]]:
        """The monitored metric and what is better."""
        metric, _, mode = self.monitor.partition(":")
        best = mode or ("max" if metric == "val_acc" else "min")
        return metric, cast(Literal["min", "max"], best)


def weights_hash(path: Path) -> str:
    """SHA-256 of a file of weights: its name, if the sweep keeps it, or computed."""
    if path.parent.name == "init_weights" and re.fullmatch(r"[0-9a-f]{64}", path.stem):
        return path.stem
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def keys_of(schema: type[Hyperparams]) -> dict[str, Key]:
    """The keys of a schema with what the runner knows of each."""
    facts: dict[str, Key] = {}
    for name, field in schema.model_fields.items():
        extra = dict(cast(dict[str, Any], field.json_schema_extra)["gridrun"])
        extra.pop("expected", None)
        facts[name] = Key(**extra)
    return facts


@functools.cache
def defaults_of(schema: type[Hyperparams]) -> dict[str, object]:
    """The default of each optional key."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in schema.model_fields.items()
        if not field.is_required()
    }
