"""Training and evaluation stay on the device that they are told to use.

No GPU is needed: torch's meta device refuses to mix with the CPU's tensors, too, but
computes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from strategies import OF_MOVIE, OF_SET, OF_SWEEP

from gridrun.request import read_request
from gridrun.training.cohort import LiveRun
from gridrun.training.engines import fed
from gridrun.training.extras import Extras
from gridrun.training.models import build_model

META = torch.device("meta")
COMMON = dict(OF_SWEEP) | {"split_seed": 5, "batch_size": 16}
MOVIE = COMMON | dict(OF_MOVIE)
PICTURES = COMMON | dict(OF_SET)
WAVES = COMMON | {
    "plugins": str(Path(__file__).parents[1] / "plugins"),
    "model_type": "Denoiser",
    "dataset": "Waves",
    "lossfxn": "MSELoss",
}
CASES: dict[str, dict[str, Any]] = {
    "VaryModel": MOVIE | {"l1": 0.1, "output_scale": "std"},
    "dropout in stacks": MOVIE | {"drop_p": 0.1, "bnorm_d": 2},
    "at the centres": MOVIE | {"convgc": True, "stackconvs": False},
    "log rates": MOVIE | {"softplus": False, "log_poisson": True},
    "one-hot": MOVIE
    | {"model_type": "RetinotopicModel", "train_loop": "retinotopic_loop"},
    "BNCNN": MOVIE | {"model_type": "BNCNN", "chans": [2, 2], "ksizes": [4, 3, 2]},
    "LN": MOVIE | {"model_type": "LN", "lossfxn": "MSELoss"},
    "McIntosh2016": MOVIE | {"model_type": "McIntosh2016", "chans": [2, 3]},
    "SmallNet": PICTURES | {"drop_ps": [0.1, 0.3], "lossfxn": "MSELoss"},
    "shakes": PICTURES
    | {"model_type": "PlainN", "width": 3, "n_shakes": 3, "dataset": "large"}
    | {"img_shape": [3, 16, 16]},
    "AlexNet": PICTURES
    | {"model_type": "AlexNet", "mid_dims": 4, "locrespnorm": True}
    | {"dataset": "large", "img_shape": [3, 16, 16]},
    "pairs": WAVES | {"normalizer": "per_sample", "loss_space": "original"},
    "preset": WAVES | {"use_preset": True},
}


@pytest.fixture(scope="module", autouse=True)
def _places(
    tmp_path_factory: pytest.TempPathFactory,
    write_recording: Callable[..., Any],
    write_images: Callable[..., Any],
) -> Iterator[None]:
    """A working directory with a recording and two image sets."""
    root = tmp_path_factory.mktemp("devices")
    write_recording(root / "data" / "rec" / "movie.h5")
    write_images(root / "data" / "set" / "images.h5")
    write_images(root / "data" / "large" / "images.h5", shape=(3, 16, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_an_evaluation_stay_on_the_device(name: str) -> None:
    """Nothing of another device takes part, and every result is there."""
    request = read_request(CASES[name], {})
    (point,) = request.points()
    hyps, kind = point.hyps, request.library.load_trainer()
    data = kind.open_data(hyps, META)
    model = build_model(request.library, hyps, kind.inspect_data(hyps)).to(META)
    kind.prepare_model(model, data)
    facts = {"model": model, "hyps": hyps, "number": 0, "device": META}
    facts |= {"dtype": torch.float32, "autocast": contextlib.nullcontext}
    facts["random"] = SimpleNamespace(
        generators={"augmentation": None}
    )  # draws nothing
    run = cast(LiveRun, SimpleNamespace(**facts, extras=Extras.of(hyps, {})))
    trainer = kind(request.library, [run], data)
    batch, x = fed(trainer, run, data.train.batch(torch.arange(8)))
    terms = trainer.objective(run, batch, x)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert {term.device for term in terms.values()} == {META}
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters())
    model.eval()
    with torch.no_grad():
        found = trainer.evaluate(run, data.val.batch(torch.arange(4)))
    assert {part.device for part in found.values()} == {META}
