"""Pruning: masks, scores, the order of removals, verdicts, rollback, smaller models."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gridrun.analysis.run import Run
from gridrun.analysis.sweep import load_model
from gridrun.config import complete
from gridrun.errors import CheckpointError, ConfigError
from gridrun.nn import LinearStackedConv2d
from gridrun.planner import cohort_key
from gridrun.plugins import libraries
from gridrun.store import RunFolder
from gridrun.training import checkpoint as checkpoints
from gridrun.training.cohort import Interrupted
from gridrun.training.data import in_order
from gridrun.training.models import n_parameters
from torchdeepretina import datas
from torchdeepretina.hyperparams import PRUNING_KEYS
from torchdeepretina.pruning import Pruning, channel_scores
from torchdeepretina.trainer import RetinaTrainer

SMALL: dict[str, Any] = {
    "prune": True,
    "chans": [3, 2],
    "ksizes": [3, 3, 2],
    "n_epochs": 1,
    "prune_intvl": 1,
    "save_every_epoch": True,
    "lr": 0.02,
    "bn_moment": 0.3,
}
SHAPE = (4, 8, 8)
CENTERS = [(3, 4), (4, 3), (5, 4)]
N_STEPS = 4  # of an epoch of the recording
Build = Callable[..., Any]
Values = Callable[[int], float]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def hyps(recording: Path, retina_hyps: Build) -> Build:
    """Function (**keys) that gives a small configuration that prunes."""
    return lambda **keys: retina_hyps(recording, **{**SMALL, **keys})


@pytest.fixture
def make(build: Build) -> Build:
    """Function (model, **keys) that builds a small model of 3 cells in float64."""

    def small(model: str = "VaryModel", **keys: Any) -> Any:
        given = {"img_shape": list(SHAPE), "chans": [3, 2], "ksizes": [3, 3, 2], **keys}
        if model == "McIntosh2016":
            given["ksizes"] = given["ksizes"][:2]
        built = build("torchdeepretina", model, 3, CENTERS, **given)
        return built.double()

    return small


@pytest.fixture
def prune(hyps: Build, train: Any) -> Callable[..., RunFolder]:
    """Function (**keys) that trains a small run and returns its folder."""
    return lambda **keys: train([hyps(**keys)])[0]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Values], None]:
    """Function that makes val_acc a function of the epoch."""
    true = RetinaTrainer.measure

    def install(val_acc: Values) -> None:
        def measure(self: Any, run: Any, *given: Any) -> dict[str, float]:
            return true(self, run, *given) | {"acc": val_acc(run.epoch + 1)}

        monkeypatch.setattr(RetinaTrainer, "measure", measure)

    return install


def rising(epoch: int) -> float:
    """A val_acc that always rises."""
    return epoch / 100


def falling(epoch: int) -> float:
    """A val_acc that always falls, by more than the tolerance."""
    return -epoch / 10


def state_of(folder: RunFolder, epoch: int) -> dict[str, Any]:
    """The content of an epoch's checkpoint."""
    content = folder.read_checkpoint(epoch)
    return checkpoints.from_bytes(content, folder.path)


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of pruning.csv, numbers as numbers."""
    with (folder.path / "pruning.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds: dict[str, Any] = {"attempt": int, "epoch": int, "channel": int}
    kinds |= dict.fromkeys(("score", "baseline", "val_acc"), float)
    kinds |= {"scores": json.loads}
    return [{k: kinds.get(k, str)(v) for k, v in row.items()} for row in rows]


def verdicts(folder: RunFolder) -> list[str]:
    """What was judged, in order."""
    return [row["verdict"] for row in rows_of(folder)]


def metrics_of(folder: RunFolder) -> list[dict[str, float]]:
    """The rows of metrics.csv without times."""
    return [
        {k: v for k, v in row.items() if k != "time_s"} for row in folder.epochs.read()
    ]


def windows(n: int = 5) -> Tensor:
    """n normalised windows in float64, equal at every call."""
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def last_kernel(conv: Any) -> Tensor:
    """The kernels (C, ...) that make the output channels."""
    last = conv.convs[-1] if isinstance(conv, LinearStackedConv2d) else conv
    kernel: Tensor = last.weight
    return kernel


def block_output(model: Any, index: int, x: Tensor) -> Tensor:
    """Output of a hidden block, (B, C, H, W)."""
    with torch.no_grad():
        for block in list(model.layers)[: index + 1]:
            x = block(x)
    return x


# --- masks ------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("zero_bias", [True, False])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("BNCNN", {"bnorm_d": 1}),
        ("BNCNN", {"bnorm_d": 2}),
        ("VaryModel", {"bnorm_d": 1}),
        ("VaryModel", {"bnorm_d": 2, "ksizes": [4, 3, 2]}),
        ("VaryModel", {"bnorm": False}),
        ("RetinotopicModel", {"bnorm_d": 2}),
        ("McIntosh2016", {}),
    ],
)
def test_a_removed_channel_emits_nothing_or_its_shift(
    make: Build,
    hyps: Build,
    name: str,
    keys: dict[str, Any],
    zero_bias: bool,
    is_training: bool,
) -> None:
    """With fresh statistics: 0, or the norm's shift (without a norm the bias)."""
    model = make(name, **keys, noise=0.0)
    block = model.layers[0]
    has_norm = keys.get("bnorm", name != "McIntosh2016")
    with torch.no_grad():
        for key, tensor in block.named_parameters():
            if key.endswith("bias"):
                is_shift = key.startswith("norm") or not has_norm
                tensor.fill_(0.7 if is_shift else 0.0)
    given = hyps(zero_bias=zero_bias)
    optimizer = torch.optim.Adam(model.parameters())
    pruning = Pruning()
    pruning.begin(model, optimizer, given, "layers.0", windows())
    (gone,) = pruning.removed["layers.0"]
    out = block_output(model.train(is_training), 0, windows())
    expected = torch.full_like(out[:, gone], 0.0 if zero_bias else 0.7)
    torch.testing.assert_close(out[:, gone], expected, rtol=0, atol=1e-12)
    kept = [c for c in range(3) if c != gone]
    assert (out[:, kept].std((0, 2, 3)) > 0).all()
    assert block.mask.tolist() == [float(not zero_bias or c != gone) for c in range(3)]


def test_nothing_of_a_removed_channel_reaches_the_next_layer(make: Build) -> None:
    """Its kernel, bias, norm and statistics may be anything."""
    model = make("VaryModel").eval()
    model.layers[0].close(1)
    before = model(windows())
    with torch.no_grad():
        for tensor in [*model.layers[0].parameters(), *model.layers[0].buffers()]:
            if tensor.is_floating_point() and len(tensor) == 3 * 36:
                tensor.view(3, 36)[1] = 9.0
        last_kernel(model.layers[0].conv)[1] = 9.0
        model.layers[0].conv.convs[-1].bias[1] = 9.0
    assert torch.equal(model(windows()), before)


def test_masks_are_ones_and_travel_with_the_weights(make: Build, same: Any) -> None:
    """A loaded state dict masks, or unmasks, bit for bit."""
    model, other = make().eval(), make(seed=1).eval()
    assert all((block.mask == 1).all() for block in model.layers)
    whole, before = {k: v.clone() for k, v in model.state_dict().items()}, None
    before = model(windows())
    model.layers[1].close(0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(windows()), model(windows()))
    assert not torch.equal(other(windows()), before)
    other.load_state_dict(whole)
    assert torch.equal(other(windows()), before)


@pytest.mark.parametrize("ksizes", [[3, 3], [5, 3]])
def test_without_zero_bias_the_kernel_stays_0_and_the_constant_trains(
    prune: Callable[..., RunFolder], stub: Any, ksizes: list[int]
) -> None:
    """Kernels of removed channels are 0 after every epoch, their biases move."""
    stub(rising)
    folder = prune(zero_bias=False, ksizes=ksizes, prune_intvl=2)
    removed: dict[str, list[int]] = {"layers.0": [], "layers.1": []}
    for row in rows_of(folder):
        gone = removed[row["layer"]] = [*removed[row["layer"]], row["channel"]]
        n = 1 if row["layer"] == "layers.1" or ksizes[0] == 3 else 2
        kernel = f"{row['layer']}.conv.convs.{n - 1}.weight"
        shift = f"{row['layer']}.norm.bias"
        states = [
            state_of(folder, epoch)["model_state_dict"]
            for epoch in (row["epoch"] - 1, row["epoch"])
        ]
        for state in states:
            assert (state[kernel][gone] == 0).all()
            assert (state[f"{row['layer']}.mask"] == 1).all()
        assert (states[0][shift][gone] != states[1][shift][gone]).all()
    last = state_of(folder, row["epoch"])["model_state_dict"]
    for layer, n_left in (("layers.0", 1), ("layers.1", 1)):
        last_part = 1 if layer == "layers.0" and ksizes[0] == 5 else 0
        kernels = last[f"{layer}.conv.convs.{last_part}.weight"]
        assert int(kernels.flatten(1).any(1).sum()) == n_left


# --- scores -----------------------------------------------------------------------


def reference_scores(
    model: Any, index: int, x: Tensor, n_steps: int, use_abs: bool
) -> Tensor:
    """Integrated gradients of a block by hand, in float64."""
    model.eval()
    masked = []
    for k in range(n_steps + 1):
        y = x * k / n_steps
        for block in list(model.layers)[: index + 1]:
            y = block.norm(block.conv(y)).relu() * block.mask.view(1, -1, 1, 1)
        masked.append(y.detach())
    total = torch.zeros_like(masked[0])
    for earlier, later in itertools.pairwise(masked):
        leaf = later.clone().requires_grad_()
        y = leaf
        for block in list(model.layers)[index + 1 :]:
            y = block.norm(block.conv(y)).relu() * block.mask.view(1, -1, 1, 1)
        y = model.ganglion(y)
        if hasattr(model, "onehot"):
            y = model.onehot(model.activation(model.norm(y)))
        elif hasattr(model, "nonlinearity"):
            y = model.activation(y)
        else:
            y = model.activation(model.norm(model.grab(y) if model.grab else y))
        y.sum().backward()
        assert leaf.grad is not None
        total += leaf.grad * (later - earlier)
    if use_abs:
        return total.abs().flatten(2).sum(2).mean(0)
    return total.flatten(2).sum(2).abs().mean(0)


@pytest.mark.parametrize("n_steps", [1, 5])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("BNCNN", {"bnorm_d": 2}),
        ("VaryModel", {}),
        ("VaryModel", {"convgc": True, "noise": 0.3, "drop_p": 0.2}),
        ("RetinotopicModel", {}),
        ("McIntosh2016", {}),
    ],
)
def test_scores_agree_with_a_reference(
    make: Build, name: str, keys: dict[str, Any], index: int, n_steps: int
) -> None:
    """Of masked outputs in eval mode; abssum takes magnitudes before the sum."""
    model = make(name, **keys)
    model(windows())  # statistics that are not fresh
    model.layers[0].close(1)
    found = [
        channel_scores(model, model.layers[index], windows(), n_steps, use_abs)
        for use_abs in (False, True)
    ]
    for scores, use_abs in zip(found, (False, True), strict=True):
        expected = reference_scores(model, index, windows(), n_steps, use_abs)
        torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-14)
    summed, absolute = found
    assert (summed <= absolute + 1e-15).all()
    assert not torch.allclose(summed, absolute)
    if index == 0:
        assert summed[1] == absolute[1] == 0


@pytest.mark.parametrize("is_training", [True, False])
def test_scoring_leaves_the_model_alone(
    make: Build, same: Any, is_training: bool
) -> None:
    """Weights, statistics, mode, gradients, hooks and random numbers."""
    model = make(noise=0.5).train(is_training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    channel_scores(model, model.layers[0], windows(), 3, False)
    assert same(dict(model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training is is_training
    assert all(p.grad is None for p in model.parameters())
    assert not model.layers[0]._forward_hooks


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 17])
def test_scores_are_complete_where_the_rest_is_affine(
    make: Build, n_steps: int
) -> None:
    """Of one channel ΣIG = Σz(x) - Σz(0), for any number of steps."""
    keys: dict[str, Any] = {"n_layers": 2, "chans": [1], "ksizes": [3]}
    model = make("VaryModel", **keys, softplus=False, lossfxn="MSELoss")
    model(windows())
    scores = channel_scores(model, model.layers[0], windows(), n_steps, False)
    model.eval()
    with torch.no_grad():
        changes = model(windows()) - model(torch.zeros_like(windows()))
    expected = changes.sum(1).abs().mean()
    assert scores.dtype == torch.float64
    assert abs(scores.item() - expected.item()) <= 1e-12
    assert expected > 1e-3


def test_elsewhere_the_error_falls_with_the_steps(make: Build) -> None:
    """Behind a softplus and a second block the path is followed ever better."""
    model = make("VaryModel", chans=[1, 2])
    model(windows())
    with torch.no_grad():
        model.norm.weight.fill_(4.0)
    x = windows(1)
    model.eval()
    with torch.no_grad():
        exact = (model(x) - model(torch.zeros_like(x))).sum().abs().item()
    errors = [
        abs(channel_scores(model, model.layers[0], x, n, False).item() - exact)
        for n in (2, 8, 32, 128, 512)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * errors[0]


def test_scores_are_of_training_windows(
    hyps: Build, prune: Callable[..., RunFolder], stub: Any
) -> None:
    """With a large intg_bsize the first attempt's are of all of them."""
    stub(rising)
    keys = {"precision": "float64", "chans": [2, 2]}
    folder = prune(**keys, intg_bsize=10_000, alpha_steps=3)
    data = datas.open_data(hyps(**keys), torch.device("cpu"))
    inputs = torch.cat([b.to(torch.float64).inputs for b in in_order(data.train, 500)])
    model = Run(folder.path).load_model(1)
    expected = reference_scores(model, 0, inputs, 3, False).tolist()
    assert rows_of(folder)[0]["scores"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha_steps", 2), ("intg_bsize", 20), ("abssum", True)]
)
def test_a_key_of_the_scores_changes_them(
    prune: Callable[..., RunFolder], stub: Any, name: str, value: Any
) -> None:
    """The first attempt of two runs that differ in the key, and of the same run."""
    stub(rising)
    first, again, other = (
        rows_of(prune(chans=[2, 1], **keys))[0]["scores"]
        for keys in ({}, {}, {name: value})
    )
    assert first == again
    assert first != other


# --- the candidate ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ([2, 1, 1, 0, 3], [3, 1, 2, 0]),
        ([0, 0, 0], [0, 1]),
        ([3, 2, 1], [2, 1]),
        ([0.0, math.inf, 5.0], [0, 2]),
    ],
)
def test_the_lowest_score_among_present_channels_goes(
    make: Build,
    hyps: Build,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    order: list[int],
) -> None:
    """Ties: the lowest index; a removed channel is never chosen again."""
    monkeypatch.setattr(
        "torchdeepretina.pruning.channel_scores",
        lambda *args: torch.tensor(scores, dtype=torch.float64),
    )
    model = make(n_layers=2, chans=[len(scores)], ksizes=[3])
    tried = drive(model, hyps(chans=[len(scores)], ksizes=[3]), "a" * 9)
    assert [channel for _, channel in tried] == order
    left = set(range(len(scores))) - set(order)
    assert set(model.layers[0].mask.nonzero().flatten().tolist()) == left


@pytest.mark.parametrize("kind", ["unread", "constant"])
@pytest.mark.parametrize("convgc", [True, False])
@pytest.mark.parametrize("index", [0, 1])
def test_useless_channels_go_first(
    make: Build, hyps: Build, kind: str, convgc: bool, index: int
) -> None:
    """Those that nothing reads, and those that always emit the same."""
    planted = [1, 3]
    model = make(chans=[4, 4], convgc=convgc)
    model(windows())
    following: Any = model.layers[1].conv.convs[0] if index == 0 else model.ganglion
    with torch.no_grad():
        if kind == "constant":
            model.layers[index].conv.convs[0].weight[planted] = 0.0
        elif index == 0 or convgc:
            following.weight[:, planted] = 0.0
        else:
            following[1].weight.view(3, 4, -1)[:, planted] = 0.0
    tried = drive(model, hyps(prune_layers=[f"layers.{index}"]), "aa")
    assert [channel for _, channel in tried] == planted


# --- the order of layers ----------------------------------------------------------


def drive(model: Any, hyps: Any, answers: str) -> list[tuple[str, int]]:
    """Try removals, a(ccept) or r(eject) each, to the end; what was tried."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruning, tried = Pruning(baseline=0.0), []
    for answer in answers:
        layer = pruning.next_layer(model, hyps)
        if layer is None:
            break
        pruning.begin(model, optimizer, hyps, layer, windows())
        assert pruning.attempt is not None
        tried.append((layer, pruning.attempt.channel))
        val_acc = 0.0 if answer == "a" else -1.0
        pruning.end_epoch(model, optimizer, val_acc, 1, hyps.prune_tolerance)
        pruning = Pruning.load(pruning.state())
    else:
        assert pruning.next_layer(model, hyps) is None or len(answers) < 9
    return tried


@pytest.mark.parametrize(
    ("keys", "answers", "order"),
    [
        ({}, "aaaaaaaaa", [0, 0, 1, 2]),
        ({"altn_layers": True}, "aaaaaaaaa", [0, 1, 2, 0]),
        ({"prune_layers": ["layers.2", "layers.0"]}, "aaaaaaaaa", [2, 0, 0]),
        ({"prune_layers": ["layers.1"]}, "aaaaaaaaa", [1]),
        (
            {"altn_layers": True, "prune_layers": ["layers.2", "layers.1", "layers.0"]},
            "aaaaaaaaa",
            [2, 1, 0, 0],
        ),
        ({}, "raaaaaaaa", [0, 1, 2]),
        ({}, "araaaaaaa", [0, 0, 1, 2]),
        ({}, "rrrrrrrrr", [0, 1, 2]),
        ({"altn_layers": True}, "raaaaaaaa", [0, 1, 2]),
        ({"altn_layers": True}, "aaraaaaaa", [0, 1, 2, 0]),
        ({"altn_layers": True, "chans": [4, 2, 3]}, "aaaaaaaaa", [0, 1, 2, 0, 2, 0]),
        ({"altn_layers": True, "chans": [3, 4, 1]}, "raaaaaaaa", [0, 1, 1, 1]),
        ({"chans": [1, 3, 1]}, "aaaaaaaaa", [1, 1]),
        ({"chans": [1, 1, 1]}, "aaaaaaaaa", []),
    ],
)
def test_layers_are_tried_in_order(
    make: Build, hyps: Build, keys: dict[str, Any], answers: str, order: list[int]
) -> None:
    """A layer closes at a rejection and at its last channel; altn_layers takes turns.

    The layer that has lost least is next; of equals the first in the list.
    """
    shape = {"chans": [3, 2, 2], "ksizes": [3, 3, 2]}
    given = hyps(**{**shape, **keys})
    model = make(chans=given.chans, ksizes=given.ksizes, n_layers=4)
    tried = drive(model, given, answers)
    assert [layer for layer, _ in tried] == [f"layers.{i}" for i in order]


# --- verdicts ---------------------------------------------------------------------

MOMENTUM = {"optimizer": "SGD", "optimizer_args": {"momentum": 0.9}, "lr": 0.001}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        MOMENTUM,
        {"zero_bias": False},
        {"reset_sd": True, "reset_lr": True, "bnorm_d": 2},
        {"altn_layers": True, "output_scale": "std", "bnorm": False},
    ],
)
def test_rejection_restores_everything_bit_for_bit(
    prune: Callable[..., RunFolder],
    stub: Any,
    same: Any,
    keys: dict[str, Any],
) -> None:
    """If val_acc always falls, the model of epoch n_epochs is what is left.

    Parameters, running statistics, masks, optimizer moments and the learning rate.
    """
    stub(falling)
    schedule = {"scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.5}}
    folder = prune(n_epochs=2, prune_intvl=2, **schedule, **keys)
    assert verdicts(folder) == ["reject"] * 2
    kept = state_of(folder, 2)
    for epoch in (4, 6):
        restored, trained = state_of(folder, epoch), state_of(folder, epoch - 1)
        for part in ("model_state_dict", "optim_state_dict"):
            assert same(restored[part], kept[part]), part
            assert not same(trained[part], kept[part]), part
    assert kept["optim_state_dict"]["state"]
    rates = [group["lr"] for group in kept["optim_state_dict"]["param_groups"]]
    assert rates == [folder.epochs.read()[0]["lr"] / 4]
    assert state_of(folder, 6)["progress"]["extra"]["removed"] == {
        "layers.0": [],
        "layers.1": [],
    }


def test_a_rejection_goes_back_to_the_accepted_state_before(
    prune: Callable[..., RunFolder], stub: Any, same: Any
) -> None:
    """Not to the first one: what was accepted stays removed."""
    stub({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.0, 6: 0.0, 7: 0.0}.__getitem__)
    folder = prune(prune_intvl=2)  # epochs 3: accept, 5: reject, 7: reject
    assert verdicts(folder) == ["accept", "reject", "reject"]
    accepted, last = state_of(folder, 3), state_of(folder, 7)
    for part in ("model_state_dict", "optim_state_dict"):
        assert same(last[part], accepted[part])
        assert same(state_of(folder, 5)[part], accepted[part])
        assert not same(accepted[part], state_of(folder, 1)[part])
    (first, *_) = rows_of(folder)
    mask = last["model_state_dict"]["layers.0.mask"].tolist()
    assert mask == [float(c != first["channel"]) for c in range(3)]


@pytest.mark.parametrize("altn_layers", [False, True])
@pytest.mark.parametrize("chans", [[3, 2], [1, 4]])
def test_if_val_acc_rises_one_channel_a_layer_is_left(
    prune: Callable[..., RunFolder], stub: Any, chans: list[int], altn_layers: bool
) -> None:
    """No channel is chosen twice; each acceptance is the next baseline."""
    stub(rising)
    folder = prune(chans=chans, altn_layers=altn_layers)
    rows = rows_of(folder)
    assert [row["verdict"] for row in rows] == ["accept"] * sum(c - 1 for c in chans)
    chosen = [(row["layer"], row["channel"]) for row in rows]
    assert len(set(chosen)) == len(chosen)
    assert [row["baseline"] for row in rows] == [0.01, *(r["val_acc"] for r in rows)][
        :-1
    ]
    state = state_of(folder, folder.read_index()["last"])["model_state_dict"]
    for i, n in enumerate(chans):
        mask = state[f"layers.{i}.mask"]
        assert mask.sum() == 1
        assert {c for c in range(n) if mask[c] == 0} == {
            c for layer, c in chosen if layer == f"layers.{i}"
        }


@pytest.mark.parametrize(
    ("val_acc", "verdict"),
    [
        (0.25, "accept"),
        (np.nextafter(0.25, 0), "reject"),
        (math.nan, "reject"),
        (math.inf, "reject"),
        (-math.inf, "reject"),
    ],
)
def test_the_first_removal_is_judged_by_the_tolerance(
    prune: Callable[..., RunFolder], stub: Any, val_acc: float, verdict: str
) -> None:
    """A fall of exactly prune_tolerance is accepted; what is not finite never."""
    stub(lambda epoch: 0.5 if epoch == 1 else val_acc)
    folder = prune(chans=[2], ksizes=[3], prune_tolerance=0.25)
    assert verdicts(folder) == [verdict]
    assert folder.read()["state"] == "done"


def test_a_larger_tolerance_flips_a_verdict(
    prune: Callable[..., RunFolder], stub: Any
) -> None:
    """The same fall of .05 is accepted or rejected."""
    stub(lambda epoch: 0.5 if epoch == 1 else 0.45)
    found = [
        verdicts(prune(chans=[2], ksizes=[3], prune_tolerance=one))
        for one in (0.04, 0.06)
    ]
    assert found == [["reject"], ["accept"]]


def test_each_removal_is_measured_by_the_one_accepted_before(
    prune: Callable[..., RunFolder], stub: Any
) -> None:
    """Small falls in a row are accepted; a rejection leaves the baseline."""
    stub(_small_falls)
    folder = prune(chans=[4, 2], prune_tolerance=0.1)
    assert [(r["baseline"], r["verdict"]) for r in rows_of(folder)] == [
        (0.5, "accept"),
        (0.41, "accept"),
        (0.32, "reject"),
        (0.32, "accept"),
    ]


def _small_falls(epoch: int) -> float:
    return [math.nan, 0.5, 0.41, 0.32, 0.2, 0.23, 0.0][epoch]


@pytest.mark.parametrize("intvl", [1, 3])
@pytest.mark.parametrize("val_acc", [rising, falling])
def test_attempts_take_prune_intvl_epochs(
    prune: Callable[..., RunFolder], stub: Any, intvl: int, val_acc: Values
) -> None:
    """Only the last of them is judged; n_epochs + intvl x attempts in total."""
    stub(lambda epoch: val_acc(epoch) if (epoch - 2) % intvl == 0 else -9.0)
    folder = prune(n_epochs=2, prune_intvl=intvl, chans=[2, 2], prune_layers=[])
    rows = rows_of(folder)
    assert len(rows) == 2
    assert [row["epoch"] for row in rows] == [2 + intvl, 2 + 2 * intvl]
    assert [row["val_acc"] for row in rows] == [val_acc(r["epoch"]) for r in rows]
    epochs = [row["epoch"] for row in folder.epochs.read()]
    assert epochs == list(range(1, 2 + 2 * intvl + 1))


@pytest.mark.parametrize("spoilt", [[0], [2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_a_diverging_attempt_is_rejected_and_the_run_goes_on(
    prune: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    same: Any,
    l1: float,
    spoilt: list[int],
) -> None:
    """A loss that is not finite in an attempt undoes it; the next layer is tried."""
    objective = RetinaTrainer.loops["train_loop"]
    steps = itertools.count()

    def diverging(trainer: Any, run: Any, batch: Any, x: Any) -> Any:
        terms = objective(trainer, run, batch, x)
        if next(steps) - N_STEPS in spoilt:
            return terms | {"loss": terms["loss"] * math.nan}
        return terms

    monkeypatch.setitem(RetinaTrainer.loops, "train_loop", diverging)
    folder = prune(l1=l1, prune_tolerance=3.0)
    assert folder.read()["state"] == "done"
    assert verdicts(folder) == ["reject", "accept"]
    rows = folder.epochs.read()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert math.isnan(rows[1]["loss"])
    assert all(math.isfinite(v) for i in (0, 2) for v in rows[i].values())
    assert rows[1].keys() == rows[0].keys()
    assert 0 < rows[1]["lr"] == rows[0]["lr"]
    for part in ("model_state_dict", "optim_state_dict"):
        assert same(state_of(folder, 2)[part], state_of(folder, 1)[part])


# --- resets -----------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a run is like when each epoch begins, after any removal."""
    begin, found = RetinaTrainer.begin_epoch, []

    def noted(trainer: Any, run: Any) -> None:
        begin(trainer, run)
        parts = {"model": run.model.state_dict(), "optimizer": run.optimizer.state}
        model = {k: v.clone() for k, v in parts["model"].items()}
        found.append({"model": model, "n_moments": len(parts["optimizer"])})

    monkeypatch.setattr(RetinaTrainer, "begin_epoch", noted)
    return found


@pytest.mark.parametrize("zero_bias", [True, False])
@pytest.mark.parametrize("reset_sd", [True, False])
def test_reset_sd_trains_again_from_the_initial_weights(
    prune: Callable[..., RunFolder],
    stub: Any,
    same: Any,
    seen: list[dict[str, Any]],
    reset_sd: bool,
    zero_bias: bool,
) -> None:
    """Parameters and statistics of the run's seed, removed channels still removed."""
    stub(rising)
    keys = {"zero_bias": zero_bias, "output_scale": "std"}
    folder = prune(reset_sd=reset_sd, prune_intvl=2, **keys)
    initial = seen[0]["model"]
    removed: dict[str, list[int]] = {"layers.0": [], "layers.1": []}
    for row, start in zip(rows_of(folder), seen[1::2], strict=True):
        removed[row["layer"]].append(row["channel"])
        source = initial
        if not reset_sd:
            source = state_of(folder, row["epoch"] - 2)["model_state_dict"]
        expected = {name: tensor.clone() for name, tensor in source.items()}
        for layer, channels in removed.items():
            if zero_bias:
                expected[f"{layer}.mask"][channels] = 0.0
            else:
                expected[f"{layer}.conv.convs.0.weight"][channels] = 0.0
        assert same(start["model"], expected)
        assert (start["n_moments"] == 0) is reset_sd
    assert not same(seen[2]["model"], seen[1]["model"])


def test_reset_sd_goes_back_to_given_weights(
    prune: Callable[..., RunFolder], stub: Any, seen: list[dict[str, Any]], same: Any
) -> None:
    """With init_weights_path the initial weights are those of the file."""
    stub(rising)
    first = prune(prune=False)
    path = first.checkpoint_path(1)
    del seen[:]
    prune(init_weights_path=str(path), reset_sd=True, seed=6)
    given = state_of(first, 1)["model_state_dict"]
    for start in seen:
        for name, tensor in start["model"].items():
            if not name.endswith("mask"):
                assert same(tensor, given[name])


@pytest.mark.parametrize("val_acc", [rising, falling])
@pytest.mark.parametrize("reset_lr", [True, False])
def test_reset_lr_goes_back_to_lr(
    prune: Callable[..., RunFolder], stub: Any, reset_lr: bool, val_acc: Values
) -> None:
    """While pruning, the scheduler rests: its last rate, or lr, is logged."""
    stub(val_acc)
    schedule = {"scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.5}}
    keys = {"n_epochs": 3, "lr": 0.016, "prune_intvl": 2, "chans": [2, 2]}
    folder = prune(reset_lr=reset_lr, **schedule, **keys)
    rates = [row["lr"] for row in folder.epochs.read()]
    pruned = 0.016 if reset_lr else 0.002
    assert rates == pytest.approx([0.016, 0.008, 0.004, *[pruned] * 4], rel=1e-12)


# --- what rests -------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"scheduler": "CosineAnnealingLR"},
        {"scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0}},
        {"monitor": "val_acc", "early_stop_patience": 5},
        {"monitor": "val_acc:min", "early_stop_patience": 1},
    ],
)
@pytest.mark.parametrize("val_acc", [rising, falling])
def test_scheduler_patience_and_best_rest(
    prune: Callable[..., RunFolder],
    stub: Any,
    same: Any,
    keys: dict[str, Any],
    val_acc: Values,
) -> None:
    """They stay as the last regular epoch left them."""
    stub(val_acc)
    folder = prune(n_epochs=2, **keys)
    kept = state_of(folder, 2)
    memory = {k: v for k, v in kept["progress"].items() if k != "extra"}
    last = folder.read_index()["last"]
    assert last == 2 + len(rows_of(folder)) > 2
    for epoch in range(3, last + 1):
        state = state_of(folder, epoch)
        assert same(state["scheduler_state_dict"], kept["scheduler_state_dict"])
        assert {k: v for k, v in state["progress"].items() if k != "extra"} == memory
    assert folder.read_index()["best"] == memory["best_epoch"] <= 2
    assert folder.read()["best_epoch"] == memory["best_epoch"]


def test_pruning_begins_after_an_early_stop(
    prune: Callable[..., RunFolder], stub: Any
) -> None:
    """The epoch that stopped is the baseline, and no attempt stops again."""
    stub(falling)
    folder = prune(n_epochs=9, monitor="val_acc", early_stop_patience=2, prune_intvl=4)
    rows = rows_of(folder)  # epoch 1 is best, 2 and 3 are worse
    assert [row["epoch"] for row in rows] == [7, 11]
    assert rows[0]["baseline"] == falling(3)
    assert len(folder.epochs.read()) == 11


# --- what is recorded -------------------------------------------------------------


def test_the_last_model_is_tested(prune: Callable[..., RunFolder]) -> None:
    """Test metrics are those of `last`, and not of `best`."""
    folder = prune(n_epochs=2, prune_tolerance=3.0)
    index = folder.read_index()
    assert index["best"] <= 2 < index["last"] == 5
    found = {}
    for epoch in ("best", "last"):
        shown = Run(folder.path).predict("test", epoch)
        pairs = zip(shown.rates.T, shown.targets.T, strict=True)
        found[epoch] = float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in pairs]))
    recorded = folder.read()["test"]["test_acc"]
    assert recorded == pytest.approx(found["last"], abs=1e-5)
    assert abs(recorded - found["best"]) > 1e-3


def test_pruning_csv_tells_every_attempt(prune: Callable[..., RunFolder]) -> None:
    """Layer, channel, scores, baseline, val_acc and verdict, as in metrics.csv."""
    folder = prune(prune_tolerance=0.05, prune_intvl=2, chans=[4, 3])
    text = (folder.path / "pruning.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == (
        "attempt,epoch,layer,channel,score,scores,baseline,val_acc,verdict"
    )
    metrics = {row["epoch"]: row["val_acc"] for row in folder.epochs.read()}
    baseline = metrics[1]
    removed: dict[str, set[int]] = {"layers.0": set(), "layers.1": set()}
    for number, row in enumerate(rows_of(folder), 1):
        gone = removed[row["layer"]]
        scores = row["scores"]
        assert row["attempt"] == number
        assert {c for c, s in enumerate(scores) if math.isnan(s)} == gone
        assert len(scores) == (4 if row["layer"] == "layers.0" else 3)
        assert row["score"] == scores[row["channel"]] == np.nanmin(scores)
        assert row["baseline"] == baseline
        assert row["val_acc"] == metrics[row["epoch"]]
        holds = row["val_acc"] >= baseline - 0.05
        assert row["verdict"] == ("accept" if holds else "reject")
        if holds:
            baseline = row["val_acc"]
            gone.add(row["channel"])
    extra = state_of(folder, folder.read_index()["last"])["progress"]["extra"]
    assert {k: set(v) for k, v in extra["removed"].items()} == removed


# --- resuming and company ---------------------------------------------------------

RESUMED: dict[str, Any] = {
    "noise": 0.2,
    "drop_p": 0.1,
    "ksizes": [5, 3],
    "prune_intvl": 2,
    "prune_tolerance": 0.06,
    "intg_bsize": 50,
}


def equal_runs(one: RunFolder, other: RunFolder, last_state: Any, same: Any) -> None:
    """Two runs ended bit for bit the same."""
    states = last_state(one), last_state(other)
    for part in ("epoch", "model_state_dict", "optim_state_dict", "rng"):
        assert same(*(state[part] for state in states)), part
    first, second = (repr(state["progress"]) for state in states)  # NaN is no NaN
    assert first == second
    assert repr(metrics_of(one)) == repr(metrics_of(other))
    assert one.read()["test"] == other.read()["test"]
    for name in ("pruning.csv", "pruned_model.pt"):
        files = [folder.path / name for folder in (one, other)]
        contents = [file.read_bytes() if file.exists() else b"" for file in files]
        assert contents[0] == contents[1], name


def interrupt(train: Any, hyps: Any, folder: RunFolder, n_steps: int) -> bool:
    """Train until asked to stop for the n_steps + 1st time; whether it was."""
    asked = itertools.count()
    try:
        train([hyps], folders=[folder], should_stop=lambda: next(asked) >= n_steps)
    except Interrupted:
        return True
    return False


RESET = {"reset_sd": True, "reset_lr": True, "zero_bias": False}


@pytest.mark.parametrize(
    ("keys", "stops"),
    [
        *[({}, [n_steps]) for n_steps in (4, 6, 8, 11, 12, 13)],
        *[(RESET, [n_steps]) for n_steps in (6, 8, 12)],
        ({}, [5] * 30),
        (RESET, [5] * 30),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    hyps: Build,
    train: Any,
    make_folder: Any,
    last_state: Any,
    same: Any,
    keys: dict[str, Any],
    stops: list[int],
) -> None:
    """In an attempt, between its epochs, between attempts, and again and again."""
    given = hyps(**RESUMED, **keys)
    (whole,) = train([given])
    assert len(rows_of(whole)) > 1
    folder = make_folder(given)
    n_stopped = sum(interrupt(train, given, folder, n_steps) for n_steps in stops)
    assert n_stopped == min(len(stops), len(metrics_of(whole)) - 1)
    train([given], folders=[folder])
    equal_runs(whole, folder, last_state, same)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_a_run_killed_before_a_checkpoint_is_resumed_equal(
    hyps: Build,
    train: Any,
    make_folder: Any,
    last_state: Any,
    same: Any,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    """pruning.csv may be ahead of the checkpoints."""
    given = hyps(**RESUMED)
    (whole,) = train([given])
    folder = make_folder(given)
    save = RunFolder.save_checkpoint

    def killed(self: RunFolder, content: bytes, number: int, *rest: Any) -> None:
        if number == epoch:
            raise Interrupted
        save(self, content, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed)
        with pytest.raises(Interrupted):
            train([given], folders=[folder])
    train([given], folders=[folder])
    equal_runs(whole, folder, last_state, same)


def test_pruned_and_other_runs_train_side_by_side(
    hyps: Build, train: Any, last_state: Any, same: Any
) -> None:
    """Each ends as it does alone, whatever its company."""
    changes: Iterable[dict[str, Any]] = (
        {"prune": False, "n_epochs": 4},
        RESUMED,
        {"prune_intvl": 1, "altn_layers": True, "prune_tolerance": 3.0, "n_epochs": 2},
        {"prune": False},
    )
    grid = [hyps(**one) for one in changes]
    assert len({cohort_key(one) for one in grid}) == 1
    together = train(grid)
    reverse = train(grid[::-1])[::-1]
    for one, other, given in zip(together, reverse, grid, strict=True):
        (alone,) = train([given])
        assert alone.read()["state"] == "done"
        equal_runs(alone, one, last_state, same)
        equal_runs(alone, other, last_state, same)
        assert (alone.path / "pruning.csv").exists() is given.prune
        if not given.prune:
            assert len(alone.epochs.read()) == given.n_epochs


# --- the smaller model ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("BNCNN", {"bnorm_d": 1}),
        ("BNCNN", {"bnorm_d": 2, "convgc": True, "stackconvs": True}),
        ("LinearStackedBNCNN", {"bnorm_d": 1}),
        ("LinearStackedBNCNN", {"bnorm_d": 2, "convgc": True, "n_layers": 7}),
        ("VaryModel", {"bnorm_d": 1}),
        ("VaryModel", {"bnorm_d": 2, "convgc": True}),
        ("VaryModel", {"bnorm": False, "output_scale": "std"}),
        ("VaryModel", {"bias": False, "gc_bias": True, "stackconvs": False}),
        ("VaryModel", {"bias": False, "convgc": True}),
        ("McIntosh2016", {}),
        ("RetinotopicModel", {"bnorm_d": 1}),
        ("RetinotopicModel", {"bnorm_d": 2, "rand_onehot": True}),
    ],
)
def test_the_reduced_model_is_the_masked_one(
    recording: Path,
    retina_hyps: Build,
    tmp_path: Path,
    train: Any,
    stub: Any,
    name: str,
    keys: dict[str, Any],
) -> None:
    """The same outputs of fewer parameters, without masks, stacks or data."""
    root = tmp_path / "data"
    shutil.copytree(recording, root)
    shape = {"chans": [3, 3], "ksizes": [4, 3] if name == "McIntosh2016" else [4, 3, 2]}
    given = {**SMALL, **shape, **keys, "model_type": name, "precision": "float64"}
    stub(lambda epoch: 0.0 if epoch == 3 else 0.5)
    (folder,) = train([retina_hyps(root, **given)])
    shutil.rmtree(root)
    assert verdicts(folder) == ["accept", "reject", "accept", "accept"]
    masked = load_model(folder.path, "last")
    smaller: Any = load_model(folder.path, "pruned")
    assert [len(block.mask) for block in smaller.layers] == [2, 1]
    assert all((block.mask == 1).all() for block in smaller.layers)
    assert not any(isinstance(m, LinearStackedConv2d) for m in smaller.modules())
    kept_class = "VaryModel" if name == "LinearStackedBNCNN" else name
    assert type(smaller).__name__ == kept_class
    assert n_parameters(smaller) < n_parameters(masked)
    with torch.no_grad():
        found, expected = smaller(windows(20)), masked(windows(20))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert expected.std(0).min() > 1e-6
    state = checkpoints.from_bytes((folder.path / "pruned_model.pt").read_bytes(), "")
    assert "optim_state_dict" not in state
    by_file = load_model(folder.path / "pruned_model.pt")
    assert torch.equal(by_file(windows()), smaller(windows()))


def test_the_reduced_model_of_single_precision_is_close(
    prune: Callable[..., RunFolder], stub: Any
) -> None:
    """In float32 too it predicts what `last` does, on all test windows."""
    stub(rising)
    folder = prune(ksizes=[5, 3], n_epochs=3)
    run = Run(folder.path)
    assert next(run.load_model("pruned").parameters()).dtype == torch.float32
    found, expected = (run.predict("test", e).rates for e in ("pruned", "last"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_without_zero_bias_no_smaller_model_is_written(
    hyps: Build, prune: Callable[..., RunFolder], stub: Any
) -> None:
    """A notice says so beforehand; asking for it is an error."""
    stub(rising)
    folder = prune(zero_bias=False, chans=[2], ksizes=[3])
    assert not (folder.path / "pruned_model.pt").exists()
    with pytest.raises(CheckpointError, match="no pruned model"):
        load_model(folder.path, "pruned")
    with pytest.raises(ConfigError, match="epoch: expected best, last, pruned or"):
        load_model(folder.path, cast(Any, "first"))
    notices = dict(hyps(zero_bias=False).notices())
    assert "pruned_model.pt" in notices["zero_bias"]
    assert "zero_bias" not in dict(hyps().notices())


# --- configuration ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "texts"),
    [
        ({"model_type": "LN"}, "prune", ["LN", "no hidden layer"]),
        ({"chans": [], "ksizes": []}, "prune", ["VaryModel", "no hidden layer"]),
        (
            {"model_type": "RetinotopicModel", "train_loop": "retinotopic_loop"},
            "prune",
            ["retinotopic_loop"],
        ),
        (
            {"prune_layers": ["layers.2"]},
            "prune_layers",
            ["'layers.2'", "layers.0", "layers.1"],
        ),
        (
            {"prune_layers": ["layers.0", "conv1"]},
            "prune_layers",
            ["'conv1'", "layers.0", "layers.1"],
        ),
        ({"prune_layers": ["layers.1", "layers.1"]}, "prune_layers", ["twice"]),
        ({"prune_intvl": 0}, "prune_intvl", []),
        ({"prune_tolerance": -0.1}, "prune_tolerance", []),
        ({"alpha_steps": 0}, "alpha_steps", []),
        ({"intg_bsize": 0}, "intg_bsize", []),
    ],
)
def test_contradictions_are_refused(
    hyps: Build, keys: dict[str, Any], key: str, texts: Sequence[str]
) -> None:
    """One problem, that names the key and what there is."""
    values = {**hyps().model_dump(), "n_layers": None, **keys}
    found, problems = complete(values, libraries()["torchdeepretina"].schema)
    assert found is None
    ((name, text),) = problems
    assert name == key
    assert all(one in text for one in texts)


def test_without_prune_its_keys_are_inactive(hyps: Build) -> None:
    """Each with the reason."""
    reasons = hyps(prune=False).inactive(frozenset())
    assert {reasons.get(name) for name in PRUNING_KEYS} == {"needs prune true"}
    assert not set(PRUNING_KEYS) & set(hyps().inactive(frozenset()))
