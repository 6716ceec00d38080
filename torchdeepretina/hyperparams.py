"""The hyperparameters of retina models; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gridrun.config import Hyperparams, key, shown, suggest

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TWO_HIDDEN = ("BNCNN", "LinearStackedBNCNN", "McIntosh2016")
ANY_HIDDEN = ("VaryModel", "RetinotopicModel")
NO_BNORM = ("LN", "McIntosh2016")
ResponseType = Literal[
    "firing_rate_5ms", "firing_rate_10ms", "firing_rate_20ms", "binned"
]


class RetinaHyperparams(Hyperparams):
    """Keys of `torchdeepretina` (hyperparameter reference: training_scripts)."""

    loops: ClassVar[tuple[str, ...]] = ("train_loop", "retinotopic_loop")
    also_of_models: ClassVar[tuple[str, ...]] = ("lossfxn", "log_poisson")

    n_layers: int | None = key(
        None,
        "layers including the ganglion layer; null: one more than chans",
        group="model",
        ge=1,
    )
    chans: list[PositiveInt] = key(
        [8, 8],
        "channels of the hidden convolutions, ganglion layer excluded; default "
        "[16, 8] for McIntosh2016",
        group="model",
    )
    ksizes: list[PositiveInt] = key(
        [15, 11, 11],
        "kernel side per layer; the last is the ganglion kernel, read only with "
        "convgc or by RetinotopicModel, else optional",
        group="model",
    )
    bnorm: bool = key(
        True, "batch normalisation, ganglion layer included", group="model"
    )
    bnorm_d: Literal[1, 2] = key(
        1, "batch norm per unit (1) or per channel (2) in hidden blocks", group="model"
    )
    bn_moment: float = key(
        0.01,
        "running statistics = (1 - m) running + m batch",
        group="model",
        gt=0,
        le=1,
    )
    bias: bool = key(True, "biases of the hidden convolutions", group="model")
    gc_bias: bool | None = key(
        None,
        "bias of the final layer; null: true exactly if no batch norm follows",
        group="model",
    )
    softplus: bool = key(True, "softplus on the model's output", group="model")
    output_scale: Literal["none", "std"] = key(
        "none",
        "std: rates are multiplied by each cell's standard deviation in training",
        group="model",
    )
    stackconvs: bool = key(
        False,
        "hidden convolutions as linear stacks of 3×3; default true for VaryModel, "
        "RetinotopicModel and LinearStackedBNCNN",
        group="model",
    )
    drop_p: float = key(
        0.0,
        "dropout between the convolutions of a stack; needs stackconvs",
        group="model",
        ge=0,
        lt=1,
    )
    convgc: bool = key(
        False,
        "ganglion layer is a convolution read at each cell's centre",
        group="model",
    )
    rand_onehot: bool = key(
        False,
        "one-hot weights uniform in (0, 1), else 1/(H·W)",
        group="model",
    )
    noise: float = key(
        0.05,
        "standard deviation of the Gaussian noise before each hidden ReLU, in "
        "training; default 0.1 for McIntosh2016",
        group="model",
        ge=0,
    )
    img_shape: list[PositiveInt] = key(
        [40, 50, 50],
        "(C, H, W) of one sample; C is the number of frames that a model sees",
        group="model",
        min_length=3,
        max_length=3,
    )

    stim_type: str = key(
        ...,
        "name of the data set's HDF5 file, without .h5",
        group="data",
        pattern=r"^[^/\\]+$",
        expected="the name of a file, without a path",
    )
    cells: Literal["all"] | list[NonNegativeInt] = key(
        "all", "recorded cells to train on, in this order", group="data"
    )
    response_type: ResponseType = key(
        "firing_rate_10ms",
        "which response is the target (Hz; binned: spikes per bin)",
        group="data",
    )
    target_offset: Literal[0, 1] = key(
        1, "target bin relative to the last frame of the window", group="data"
    )
    n_skip_frames: int = key(
        0, "frames ignored at the start of every training block", group="data", ge=0
    )
    stim_storage: Literal["auto", "uint8", "float16", "float32"] = key(
        "auto", "type of the stimulus in memory; auto: as in the file", group="data"
    )
    normalizer: str | dict[str, Any] = key(
        "global",
        "how inputs are normalised, fitted on training samples: none, global, "
        "per_channel, per_sample, or a plug-in",
        group="data",
    )

    lossfxn: Literal["PoissonNLLLoss", "MSELoss"] = key(
        "PoissonNLLLoss", "the loss of a prediction", group="training"
    )
    log_poisson: bool = key(
        False, "PoissonNLLLoss: the model's output is a log rate", group="training"
    )
    semantic_scale: float = key(
        10.0,
        "weight of the semantic loss; retinotopic_loop",
        group="training",
        ge=0,
    )
    semantic_l1: float = key(
        0.0,
        "l1 penalty of the one-hot weights; retinotopic_loop",
        group="training",
        ge=0,
    )

    prune: bool = key(
        False,
        "prune channels after n_epochs",
        group="pruning",
    )
    prune_layers: list[str] = key(
        [],
        "prunable layers, in order; empty: all hidden ones",
        group="pruning",
    )
    prune_intvl: int = key(10, "epochs per attempt", group="pruning", ge=1)
    prune_tolerance: float = key(
        0.01,
        "largest accepted fall of val_acc",
        group="pruning",
        ge=0,
    )
    alpha_steps: int = key(5, "integration steps", group="pruning", ge=1)
    intg_bsize: int = key(500, "samples for the scores", group="pruning", ge=1)
    zero_bias: bool = key(True, "a removed channel emits 0", group="pruning")
    reset_sd: bool = key(
        False,
        "retrain from initial weights after a removal",
        group="pruning",
    )
    reset_lr: bool = key(False, "back to lr after a removal", group="pruning")
    abssum: bool = key(False, "sum of |IG| instead of |sum of IG|", group="pruning")
    altn_layers: bool = key(False, "alternate between layers", group="pruning")

    @classmethod
    def model_defaults(cls, model_type: str) -> Mapping[str, object]:
        """As published, or as the model's name says."""
        if model_type == "McIntosh2016":
            return {"chans": [16, 8], "ksizes": [15, 9], "noise": 0.1}
        stacked = ("VaryModel", "RetinotopicModel", "LinearStackedBNCNN")
        return {"stackconvs": True} if model_type in stacked else {}

    @property
    def has_ganglion_kernel(self) -> bool:
        """Whether the ganglion layer is a convolution."""
        return self.model_type == "RetinotopicModel" or (
            self.convgc and self.model_type not in ("LN", "McIntosh2016")
        )

    @property
    def has_bnorm(self) -> bool:
        """Whether the model has batch norm."""
        return self.bnorm and self.model_type not in NO_BNORM

    def work(self) -> float:
        """Epochs times channels: maps are what takes the time."""
        n_chans = 0 if self.model_type == "LN" else sum(self.chans)
        return super().work() * (1 + n_chans)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Contradictions between retina keys."""
        yield from super().problems()
        yield from self._layer_problems()
        if isinstance(self.cells, list):
            if not self.cells:
                yield "cells", 'an empty list; name cells or use "all"'
            elif len(set(self.cells)) < len(self.cells):
                yield "cells", "a cell stands twice"
        if (
            self.lossfxn == "PoissonNLLLoss"
            and not self._is_rectified
            and not self.log_poisson
        ):
            yield (
                "softplus",
                "false makes rates negative, which PoissonNLLLoss cannot take; "
                "set log_poisson true or softplus true",
            )
        yield from self._loop_problems()
        yield from self._val_set_problems()
        for name in ("batch_size", "train_set_size"):
            if getattr(self, name) == 1 and self.has_bnorm:
                yield name, "1 with bnorm true; use at least 2"

    def _layer_problems(self) -> Iterable[tuple[str, str]]:
        """What the numbers of layers, channels and kernels say of each other.

        Models of others' making say it themselves, when they are built.
        """
        name = self.model_type
        n_hidden = len(self.chans)
        if name in TWO_HIDDEN and n_hidden != 2:
            yield "chans", f"{name} has two hidden layers, got {shown(self.chans)}"
        if name in ANY_HIDDEN and self.n_layers not in (None, n_hidden + 1):
            yield (
                "n_layers",
                f"{self.n_layers} layers need {(self.n_layers or 0) - 1} values in "
                f"chans, which has {n_hidden}; leave n_layers out or match them",
            )
        if name in TWO_HIDDEN + ANY_HIDDEN:
            needed = n_hidden + self.has_ganglion_kernel
            if len(self.ksizes) not in {needed, n_hidden + 1}:
                several = f"{needed} or {n_hidden + 1}"
                yield (
                    "ksizes",
                    f"expected {needed if self.has_ganglion_kernel else several} "
                    f"kernel sizes for chans {shown(self.chans)}, "
                    f"got {len(self.ksizes)}",
                )
        if name == "LinearStackedBNCNN" and not self.stackconvs:
            yield "stackconvs", "false for LinearStackedBNCNN; BNCNN is its plain form"

    def _loop_problems(self) -> Iterable[tuple[str, str]]:
        is_retinotopic = self.train_loop == "retinotopic_loop"
        known = TWO_HIDDEN + ANY_HIDDEN + NO_BNORM
        if is_retinotopic and self.model_type in set(known) - {"RetinotopicModel"}:
            yield (
                "train_loop",
                f"retinotopic_loop needs model_type RetinotopicModel, not "
                f"{self.model_type}",
            )
        if not self.prune:
            return
        if is_retinotopic:
            yield "prune", "true with retinotopic_loop; pruning is train_loop's"
        names = [f"layers.{i}" for i in range(len(self.chans))]
        if not names or self.model_type == "LN":
            yield "prune", f"true, but {self.model_type} has no hidden layer here"
            return
        for name in self.prune_layers:
            if name not in names:
                near = suggest(name, names)
                yield "prune_layers", f"no layer {name!r}{near}; there are {names}"
        if len(set(self.prune_layers)) < len(self.prune_layers):
            yield "prune_layers", "a layer stands twice"

    @property
    def _is_rectified(self) -> bool:
        """Whether z is never negative."""
        return self.softplus or self.model_type == "McIntosh2016"

    def _val_set_problems(self) -> Iterable[tuple[str, str]]:
        parts = (self.val_set or "a/b").split("/")
        if len(parts) != 2 or not all(parts) or {".", ".."} & set(parts):
            yield "val_set", f"expected dataset/stim_type, got {shown(self.val_set)}"

    def notices(self) -> Iterable[tuple[str, str]]:
        """A softplus inside an exponential keeps rates above 1."""
        yield from super().notices()
        if self.lossfxn == "PoissonNLLLoss" and self._is_rectified and self.log_poisson:
            yield "log_poisson", "true with softplus true: no rate falls below 1"
        if self.prune and self.scheduler == "CosineAnnealingLR" and not self.reset_lr:
            yield (
                "reset_lr",
                "false: pruning trains on with the last learning rate, which "
                "CosineAnnealingLR has brought to its minimum; use reset_lr true",
            )
        if self.prune and not self.zero_bias:
            yield (
                "zero_bias",
                "false: removed channels emit constants, for which a smaller network "
                "has no place; no pruned_model.pt is written",
            )

    def metrics(self) -> tuple[str, ...]:
        """Adds the terms of the retinotopic loop."""
        terms = ("semantic_term", "semantic_l1_term")
        own = terms if self.train_loop == "retinotopic_loop" else ()
        return (*super().metrics(), *own)

    def resolved(self) -> dict[str, object]:
        """n_layers and gc_bias follow from chans and bnorm."""
        values = super().resolved()
        if self.n_layers is None:
            values["n_layers"] = len(self.chans) + 1
        if self.gc_bias is None:
            values["gc_bias"] = not self.has_bnorm
        return values

    def inactive(self, reads: frozenset[str]) -> dict[str, str]:
        """Adds the conditions of the retina keys."""
        reasons = super().inactive(reads)
        conditions: dict[str, str] = {}
        if not self.bootstrap and self.bootstrap_index is None:
            conditions["split_seed"] = "a recording is split in time, not at random"
        if not self.chans:
            for name in ("bnorm_d", "bias", "noise"):
                conditions[name] = "needs a hidden layer (chans)"
        if not self.bnorm:
            for name in ("bnorm_d", "bn_moment"):
                conditions[name] = "needs bnorm true"
        if all(side <= 3 for side in self.ksizes[: len(self.chans)]):
            conditions["stackconvs"] = "needs a hidden kernel larger than 3"
        if not self.stackconvs or "stackconvs" in conditions:
            conditions["drop_p"] = "needs stackconvs true and a hidden kernel above 3"
        if self.lossfxn != "PoissonNLLLoss":
            conditions["log_poisson"] = "needs PoissonNLLLoss"
        if self.train_loop != "retinotopic_loop":
            for name in ("semantic_scale", "semantic_l1"):
                conditions[name] = "needs train_loop retinotopic_loop"
        if not self.prune:
            for name in PRUNING_KEYS:
                conditions[name] = "needs prune true"
        return conditions | reasons

    def identity_value(self, name: str) -> Any:
        """The ganglion kernel of a dense model is not read."""
        is_known = self.model_type in TWO_HIDDEN + ANY_HIDDEN
        if name == "ksizes" and is_known and not self.has_ganglion_kernel:
            return self.ksizes[: len(self.chans)]
        return super().identity_value(name)


PRUNING_KEYS = (
    "prune_layers",
    "prune_intvl",
    "prune_tolerance",
    "alpha_steps",
    "intg_bsize",
    "zero_bias",
    "reset_sd",
    "reset_lr",
    "abssum",
    "altn_layers",
)
