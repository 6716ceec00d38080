"""The hyperparameters of image classifiers; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from gridrun.config import Hyperparams, key, shown

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
AUGMENTATIONS = ("flip", "crop", "jitter", "rotate")
Probability = Annotated[float, Field(ge=0, lt=1)]


class ImageHyperparams(Hyperparams):
    """Keys of `imgclass` (hyperparameter reference: training_scripts)."""

    chans: list[PositiveInt] = key(
        [64, 128, 256, 256, 256], "channels of the convolutions", group="model"
    )
    ksizes: list[PositiveInt] = key(
        [5, 5, 5, 5, 5], "kernel side of each convolution", group="model"
    )
    paddings: list[NonNegativeInt] | None = key(
        None, "zero padding of each convolution; null: 0", group="model"
    )
    strides: list[PositiveInt] | None = key(
        None, "stride of each convolution; null: 1", group="model"
    )
    mid_dims: int | None = key(
        None,
        "width of the hidden linear layers; null: 128 for SmallNet, 4096 for AlexNet",
        group="model",
        ge=1,
    )
    width: int | None = key(
        None,
        "channels of every convolution; null: the published widths",
        group="model",
        ge=1,
    )
    plain_n: int = key(1, "n of Plain-(8n+2)", group="model", ge=1)
    n_shakes: int = key(
        1,
        "Shake-Shake branches per convolution; 1: none",
        group="model",
        ge=1,
    )
    locrespnorm: bool = key(
        False, "local response normalisation in AlexNet", group="model"
    )
    bnorm: bool = key(True, "batch normalisation after each convolution", group="model")
    bn_moment: float = key(
        0.1,
        "running statistics = (1 - m) running + m batch",
        group="model",
        gt=0,
        le=1,
    )
    stackconvs: bool = key(
        False,
        "convolutions larger than 3×3 as linear stacks of 3×3",
        group="model",
    )
    drop_ps: list[Probability] | None = key(
        None,
        "dropout at each place: SmallNet after each convolution and after the hidden "
        "linear layer, AlexNet before each of its two; null: 0",
        group="model",
    )
    img_shape: list[PositiveInt] = key(
        [3, 32, 32],
        "(C, H, W) of one image",
        group="model",
        min_length=3,
        max_length=3,
    )

    augment: Literal["auto"] | list[Literal["flip", "crop", "jitter", "rotate"]] = key(
        "auto",
        "random changes of training images, in order; auto: the list in the file",
        group="data",
    )
    normalizer: str | dict[str, Any] = key(
        "per_channel",
        "how inputs are normalised, fitted on training samples: none, global, "
        "per_channel, per_sample, or a plug-in",
        group="data",
    )

    lossfxn: Literal["CrossEntropyLoss", "MSELoss", "PoissonNLLLoss"] = key(
        "CrossEntropyLoss",
        "the loss of a prediction; MSELoss on one-hot targets, PoissonNLLLoss on "
        "log rates and one-hot counts",
        group="training",
    )

    def plugin_names(self) -> Iterable[str]:
        """Without the augmentations of images."""
        yield from (n for n in super().plugin_names() if n not in AUGMENTATIONS)

    def work(self) -> float:
        """Epochs times layers and branches."""
        n_layers = {"PlainN": 8 * self.plain_n, "SmallNet": len(self.chans)}
        per_epoch = n_layers.get(self.model_type, 8) * self.n_shakes
        return super().work() * per_epoch

    def problems(self) -> Iterable[tuple[str, str]]:
        """Contradictions between image keys."""
        yield from super().problems()
        if self.spectra_cache_mib != "auto":
            yield "spectra_cache_mib", "of recordings only; images have no such cache"
        if isinstance(self.augment, list) and len(set(self.augment)) < len(
            self.augment
        ):
            yield "augment", "an augmentation stands twice"
        own = [name for name in self.augmenters if name in AUGMENTATIONS]
        if own and self.augment != []:
            text = f"augment [] is needed beside {shown(own)}; both would augment"
            yield "augmenters", text
        if "jitter" in own and self.img_shape[0] != 3:
            text = f"of 3 channels; these have {self.img_shape[0]}"
            yield "augmenters", f"jitter changes hue and so needs images {text}"
        for name in ("batch_size", "train_set_size"):
            if getattr(self, name) == 1 and self.bnorm:
                yield name, "1 with bnorm true; use at least 2"
        if self.model_type == "SmallNet" and not self.chans:
            yield "chans", "SmallNet needs at least one convolution"
        for name, expected in self._places().items():
            given = getattr(self, name)
            if given is not None and len(given) != expected:
                subject = self.model_type
                if subject == "SmallNet":
                    subject = f"chans {shown(self.chans)}"
                yield (
                    name,
                    f"expected {expected} values for {subject}, got {len(given)}",
                )

    def _places(self) -> dict[str, int]:
        """Lengths of the lists that the model reads."""
        if self.model_type == "AlexNet":
            return {"drop_ps": 2}
        if self.model_type != "SmallNet":
            return {}
        n = len(self.chans)
        return {"ksizes": n, "paddings": n, "strides": n, "drop_ps": n + 1}

    def resolved(self) -> dict[str, object]:
        """Lists and widths whose null means a fixed value."""
        nulls = {"paddings": 0, "strides": 1, "drop_ps": 0.0}
        widths = {"SmallNet": 128, "AlexNet": 4096}
        values: dict[str, object] = {
            name: [nulls[name]] * n
            for name, n in self._places().items()
            if name in nulls
        }
        if self.model_type in widths:
            values["mid_dims"] = widths[self.model_type]
        missing = {n: v for n, v in values.items() if getattr(self, n) is None}
        return super().resolved() | missing

    def inactive(self, reads: frozenset[str]) -> dict[str, str]:
        """Adds the conditions of the image keys."""
        reasons = super().inactive(reads)
        conditions: dict[str, str] = {}
        if not self.bnorm:
            conditions["bn_moment"] = "needs bnorm true"
        if "ksizes" in reads and all(side <= 3 for side in self.ksizes):
            conditions["stackconvs"] = "needs a kernel larger than 3"
        is_drawn = self.bootstrap or self.bootstrap_index is not None
        if self.val_set is not None and not is_drawn:
            conditions["split_seed"] = "val_set holds the validation samples"
        if self.shuffle:
            conditions["val_loc"] = "needs shuffle false; else the split is random"
        elif not self.bootstrap and self.bootstrap_index is None:
            conditions["split_seed"] = "needs shuffle true; else the split is a block"
        return conditions | reasons
