"""Predictions beside recorded responses, and what is measured of cells and runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

from gridrun.analysis.run import Run
from gridrun.errors import ConfigError
from gridrun.sweep import run_sweep
from torchdeepretina import analysis, metrics
from torchdeepretina.analysis import (
    Predictions,
    cell_metrics,
    onehot_places,
    plot_onehot,
    plot_predictions,
    plot_pruning,
    predict,
    pruning_steps,
)
from torchdeepretina.metrics import OF_REPEATS

SHIPPED = Path(__file__).parents[2] / "data"
N_LAGS = 6
KEYS: dict[str, Any] = {
    "dataset": "sim-tiny",
    "stim_type": "naturalscene",
    "img_shape": [N_LAGS, 12, 12],
    "chans": [3],
    "ksizes": [7, 4],
}
REC_KEYS = {"img_shape": [4, 8, 8], "chans": [3], "ksizes": [5, 4]}


@pytest.fixture(scope="session")
def tiny(retina_hyps: Callable[..., Any]) -> Callable[..., Any]:
    """Function (**keys) that gives a configuration for the shipped tiny recordings."""
    return lambda **given: retina_hyps(SHIPPED, **KEYS | given)


@pytest.fixture(scope="session")
def predicted(
    tiny: Callable[..., Any], build: Callable[..., Any]
) -> Callable[..., Predictions]:
    """Function (split, **keys) that predicts by an untrained model."""

    def make(split: str = "test", **given: Any) -> Predictions:
        hyps = tiny(**given)
        n_units = 4 if hyps.cells == "all" else len(hyps.cells)
        keys = {name: KEYS[name] for name in ("img_shape", "chans", "ksizes")}
        model = build("torchdeepretina", "VaryModel", n_units, **keys).eval()
        return predict(model, hyps, split)

    return make


def read(stim_type: str, name: str) -> np.ndarray:
    """An array of a shipped recording."""
    with h5py.File(SHIPPED / "sim-tiny" / f"{stim_type}.h5") as file:
        return file[name][:]


# --- predictions ------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("offset", [0, 1])
def test_predictions_stand_beside_the_recorded_bins(
    recording: Path,
    retina_hyps: Callable[..., Any],
    build: Callable[..., Any],
    split: str,
    offset: int,
) -> None:
    """Targets are the recording's at the times given, rates the model's."""
    hyps = retina_hyps(recording, target_offset=offset, cells=[2, 0])
    model = build("torchdeepretina", "VaryModel", 2, None, **REC_KEYS).eval()
    found = predict(model, hyps, split)
    name = "test" if split == "test" else "train"
    with h5py.File(recording / "rec" / "movie.h5") as file:
        responses = file[f"{name}/response/firing_rate_10ms"][[0, 2]][::-1]
    bins = np.rint(found.time_s / 0.01).astype(int)
    np.testing.assert_array_equal(found.targets, responses[:, bins].T.astype("f4"))
    assert found.cells == (2, 0)
    assert found.rates.shape == found.targets.shape
    expected = [
        stats.pearsonr(found.rates[:, u], found.targets[:, u])[0] for u in (0, 1)
    ]
    np.testing.assert_allclose(found.pearson(), expected, atol=1e-5)


@pytest.mark.parametrize("stim_type", ["naturalscene", "whitenoise"])
@pytest.mark.parametrize("offset", [0, 1])
def test_repeats_counts_and_truth_stand_beside_the_targets(
    predicted: Callable[..., Predictions], stim_type: str, offset: int
) -> None:
    """Each is the file's at the target bins, which start at the last frame's."""
    found = predicted(stim_type=stim_type, target_offset=offset)
    bins = range(N_LAGS - 1 + offset, 600)
    np.testing.assert_allclose(found.time_s, [t * 0.01 for t in bins], atol=1e-9)
    assert found.dt_s == 0.01
    assert found.repeats is not None
    assert found.counts is not None
    assert found.truth is not None
    assert found.repeats.shape == (5, len(bins), 4)
    counts = read(stim_type, "test/response/binned")
    truth = read(stim_type, "truth/test/rate")
    for u in range(4):
        repeats = read(stim_type, f"test/repeats/cell{u + 1:02d}")
        np.testing.assert_array_equal(
            found.repeats[:, :, u], repeats[:, bins].astype("f4")
        )
        np.testing.assert_array_equal(found.counts[:, u], counts[u, bins].astype("f4"))
        np.testing.assert_array_equal(found.truth[:, u], truth[u, bins])
        r = stats.pearsonr(found.truth[:, u], found.targets[:, u]).statistic
        assert r > 0.8
    np.testing.assert_allclose(found.repeats.mean(0), found.targets, atol=1e-3)
    spikes = found.counts * 5
    np.testing.assert_allclose(spikes, np.rint(spikes), atol=1e-5)
    assert spikes.sum() > 100


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_the_test_split_has_repeats(
    predicted: Callable[..., Predictions], split: str
) -> None:
    """Training and validation have the truth at their bins, but no repeats."""
    found = predicted(split)
    assert found.repeats is None
    assert found.counts is None
    assert found.truth is not None
    bins = np.rint(found.time_s / 0.01).astype(int)
    truth = read("naturalscene", "truth/train/rate")
    np.testing.assert_array_equal(found.truth, truth[:, bins].T)
    responses = read("naturalscene", "train/response/firing_rate_10ms")
    np.testing.assert_array_equal(found.targets, responses[:, bins].T.astype("f4"))


def test_mean_rates_are_those_of_the_training_windows(
    predicted: Callable[..., Predictions],
) -> None:
    """Of every split the mean over the training targets, not over the test's."""
    expected = predicted("train").targets.mean(0, dtype=np.float64)
    for split in ("train", "val", "test"):
        np.testing.assert_allclose(predicted(split).mean_rates, expected, rtol=1e-6)


def test_binned_predictions_are_in_hz(
    recording: Path, retina_hyps: Callable[..., Any], build: Callable[..., Any]
) -> None:
    """Spikes per bin leave training as Hz: a hundredfold, in rates and targets."""
    model = build("torchdeepretina", "VaryModel", 3, None, **REC_KEYS).eval()
    binned, rate = (
        predict(model, retina_hyps(recording, response_type=kind), "test")
        for kind in ("binned", "firing_rate_10ms")
    )
    with h5py.File(recording / "rec" / "movie.h5") as file:
        counts = file["test/response/binned"][:, 4:].T
    np.testing.assert_allclose(binned.targets, counts * 100, rtol=1e-5)
    assert binned.rates.mean() == pytest.approx(100 * rate.rates.mean(), rel=0.2)
    np.testing.assert_allclose(binned.counts, counts, rtol=1e-6)


@pytest.mark.parametrize("dt_s", [0.01, 0.02])
def test_binned_repeats_are_divided_by_the_bin(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    build: Callable[..., Any],
    dt_s: float,
) -> None:
    """Repeats and mean rates of binned responses are in Hz, counts are not."""
    spikes = np.random.default_rng(0).poisson(0.4, (3, 3, 40)).astype(float)
    changes = {
        "test/repeats/binned": spikes,
        "test/response/binned": spikes.mean(0),
        "train/time": np.arange(135) * dt_s,
        "test/time": np.arange(40) * dt_s,
    }
    path = tmp_path / "rec" / "movie.h5"
    arrays = write_recording(path, changes=changes)
    with h5py.File(path, "a") as file:
        file.attrs["dt_s"] = dt_s
    hyps = retina_hyps(tmp_path, response_type="binned")
    model = build("torchdeepretina", "VaryModel", 3, None, **REC_KEYS).eval()
    found = predict(model, hyps, "test")
    assert found.dt_s == dt_s
    np.testing.assert_allclose(
        found.repeats, spikes.transpose(0, 2, 1)[:, 4:] / dt_s, rtol=1e-6
    )
    np.testing.assert_allclose(found.counts, spikes.mean(0)[:, 4:].T, rtol=1e-6)
    assert found.repeats is not None
    np.testing.assert_allclose(found.repeats.mean(0), found.targets, rtol=1e-5)
    usual = arrays["train/response/binned"].mean(1) / dt_s
    np.testing.assert_allclose(found.mean_rates, usual, rtol=0.3)
    total = cell_metrics(found)["n_spikes"].iloc[:3]
    np.testing.assert_allclose(total.astype(float), spikes[:, :, 4:].sum((0, 2)))


@pytest.mark.parametrize("kind", ["binned", "firing_rate_5ms", "firing_rate_20ms"])
def test_repeats_of_another_response_type_are_not_taken(
    predicted: Callable[..., Predictions], kind: str
) -> None:
    """The shipped repeats are smoothed by 10 ms: no noise ceiling of other types."""
    found = predicted(response_type=kind)
    assert found.repeats is None
    assert cell_metrics(found)[[*OF_REPEATS]].loc[[0, 1, 2, 3]].isna().all(axis=None)


def test_cells_permute_everything(predicted: Callable[..., Predictions]) -> None:
    """Chosen cells, in their order, are the columns of every array."""
    every = predicted()
    some = predicted(cells=[3, 0])
    assert every.cells == (0, 1, 2, 3)
    assert some.cells == (3, 0)
    for name in ("targets", "repeats", "counts", "truth", "mean_rates"):
        expected = getattr(every, name)[..., [3, 0]]
        np.testing.assert_array_equal(getattr(some, name), expected, err_msg=name)
    ceiling = cell_metrics(some.of_truth())
    assert list(ceiling.index) == [3, 0, "mean", "sem", "n"]
    expected = cell_metrics(every.of_truth()).loc[[3, 0]]
    np.testing.assert_allclose(
        ceiling.loc[[3, 0]].astype(float), expected.astype(float), rtol=1e-9
    )


@pytest.mark.parametrize("stim_type", ["naturalscene", "whitenoise"])
def test_the_truth_scores_the_ceiling(
    predicted: Callable[..., Predictions], stim_type: str
) -> None:
    """As a prediction the true rates reach CC_norm 1, and more bits than a model."""
    found = predicted(stim_type=stim_type)
    truth = found.of_truth()
    np.testing.assert_array_equal(truth.rates, found.truth)
    np.testing.assert_array_equal(truth.targets, found.targets)
    best, model = cell_metrics(truth), cell_metrics(found)
    assert 0.9 < best.loc["mean", "cc_norm"] < 1.1
    assert 0.85 < best.loc["mean", "fev"] < 1.15
    cells = list(found.cells)
    for name in ("r", "cc_norm", "fev", "bits_per_spike"):
        assert (best.loc[cells, name] > model.loc[cells, name]).all(), name
    assert (best.loc[cells, "bits_per_spike"] > 0).all()


def test_a_recording_without_truth_has_no_ceiling(
    recording: Path, retina_hyps: Callable[..., Any], build: Callable[..., Any]
) -> None:
    """Asking for it is an error that says so."""
    model = build("torchdeepretina", "VaryModel", 3, None, **REC_KEYS).eval()
    found = predict(model, retina_hyps(recording), "test")
    assert found.truth is None
    with pytest.raises(ConfigError, match="truth: the recording stores no true rates"):
        found.of_truth()


def test_an_unknown_split_is_refused(
    recording: Path, retina_hyps: Callable[..., Any]
) -> None:
    """Only train, val and test can be predicted."""
    with pytest.raises(ConfigError, match="split: expected train, val or test"):
        predict(torch.nn.Identity(), retina_hyps(recording), "validation")


def test_a_replicate_s_training_windows_are_predicted_once_each(
    predicted: Callable[..., Predictions],
) -> None:
    """Not as its bootstrap drew them."""
    expected, found = predicted("train"), predicted("train", bootstrap_index=3)
    np.testing.assert_array_equal(found.time_s, expected.time_s)
    np.testing.assert_array_equal(found.targets, expected.targets)


def test_only_predicted_cells_are_plotted(
    predicted: Callable[..., Predictions],
) -> None:
    """The error names those that there are."""
    with pytest.raises(ConfigError, match=r"cells: \[9\] not predicted; there are"):
        plot_predictions(predicted(), cells=[0, 9])


@pytest.mark.parametrize("size", [1, 7, 593, 10_000])
def test_predictions_do_not_depend_on_the_batch_size(
    predicted: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Rates and metrics are the same to 1e-6, remainders included."""
    expected = predicted()
    monkeypatch.setattr(analysis, "EVAL_BATCH_SIZE", size)
    found = predicted()
    assert found.rates.shape == (594, 4)
    np.testing.assert_allclose(found.rates, expected.rates, rtol=0, atol=1e-6)
    for name in ("r", "cc_norm", "fev"):
        np.testing.assert_allclose(
            cell_metrics(found)[name].astype(float),
            cell_metrics(expected)[name].astype(float),
            atol=1e-6,
            err_msg=name,
        )


# --- cells ------------------------------------------------------------------------

COLUMNS = ["r", *OF_REPEATS, "bits_per_spike", "n_spikes", "mean_hz", "gain"]


def made(n: int = 300, n_repeats: int | None = 4) -> Predictions:
    """Predictions of three cells, numbers 7, 2 and 5, of Poisson spikes."""
    random = np.random.default_rng(1)
    signal = random.gamma(1.0, 20.0, (n, 3)) + 1
    spikes = random.poisson(signal * 0.01, (n_repeats or 1, n, 3))
    rates = signal * [0.5, 1.0, 2.0] + random.normal(0, 3, (n, 3)).clip(0)
    return Predictions(
        rates=rates.astype("f4"),
        targets=(spikes.mean(0) * 100).astype("f4"),
        time_s=np.arange(n) * 0.01,
        cells=(7, 2, 5),
        split="test",
        mean_rates=np.array([18, 20, 22], "f4"),
        dt_s=0.01,
        repeats=None if n_repeats is None else (spikes * 100).astype("f4"),
        counts=spikes.mean(0).astype("f4"),
    )


def test_a_row_for_each_cell_and_statistics_below() -> None:
    """Each column is the metric of its name, or scipy's; mean, sem and n follow."""
    one = made()
    table = cell_metrics(one)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == [7, 2, 5, "mean", "sem", "n"]
    assert one.repeats is not None
    assert one.counts is not None
    x, y = torch.tensor(one.rates), torch.tensor(one.repeats)
    expected = {
        name: values.numpy() for name, values in metrics.of_repeats(x, y).items()
    }
    lines = [stats.linregress(one.rates[:, u], one.targets[:, u]) for u in range(3)]
    expected["r"] = np.array([line.rvalue for line in lines])
    expected["gain"] = np.array([line.slope for line in lines])
    expected["mean_hz"] = one.targets.mean(0)
    spikes = np.rint(one.counts.astype(float) * 4)
    expected["n_spikes"] = spikes.sum(0)
    likely, usual = (
        stats.poisson.logpmf(one.repeats / 100, np.float64(rates) * 0.01).sum((0, 1))
        for rates in (one.rates, one.mean_rates)
    )
    expected["bits_per_spike"] = (likely - usual) / spikes.sum(0) / math.log(2)
    for name in COLUMNS:
        column = table[name].astype(float)
        np.testing.assert_allclose(column[:3], expected[name], rtol=1e-5, err_msg=name)
        assert column["mean"] == pytest.approx(column[:3].mean())
        assert column["sem"] == pytest.approx(stats.sem(column[:3]))
        assert column["n"] == 3


def test_nan_cells_are_left_out_and_counted() -> None:
    """A cell without signal and a silent one are NaN where they must, and n says so."""
    one = made()
    assert one.repeats is not None
    assert one.counts is not None
    one.repeats[1::2, :, 1] = 100 - one.repeats[::2, :, 1]
    one.counts[:, 2] = 0
    table = cell_metrics(one)
    assert math.isnan(table.loc[2, "cc_norm"])
    assert math.isnan(table.loc[5, "bits_per_spike"])
    for name, alone in (("cc_norm", [7, 5]), ("bits_per_spike", [7, 2])):
        column = table[name].astype(float)
        assert column["n"] == 2
        assert column["mean"] == pytest.approx(column[alone].mean())
        assert column["sem"] == pytest.approx(stats.sem(column[alone]))
    assert table.loc["n", "r"] == 3


def test_without_repeats_and_counts_those_columns_are_nan() -> None:
    """r, mean and gain remain; the rest counts no cell."""
    one = made(n_repeats=None)
    table = cell_metrics(one)
    assert (table.loc["n", [*OF_REPEATS]] == 0).all()
    assert table[[*OF_REPEATS]].loc[[7, 2, 5, "mean", "sem"]].isna().all(axis=None)
    assert (table.loc["n", ["r", "bits_per_spike", "gain", "mean_hz"]] == 3).all()
    assert one.counts is not None
    np.testing.assert_allclose(
        table.loc[[7, 2, 5], "n_spikes"].astype(float), one.counts.sum(0), rtol=1e-6
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3])
def test_a_constant_prediction_has_no_gain(value: float) -> None:
    """r is 0; gain and CC_norm are NaN and count for nothing."""
    one = made(1037)
    one.rates[:, 1] = value
    table = cell_metrics(one)
    assert table.loc[2, "r"] == 0
    assert table.loc[[2], ["gain", "cc_norm"]].isna().all(axis=None)
    assert (table.loc["n", ["gain", "cc_norm"]] == 2).all()


# --- what a run records -----------------------------------------------------------


def strict(path: Path) -> Any:
    """A JSON file in which NaN and Infinity are refused."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


RECORDED = {"acc": "r", "bits_per_spike": "bits_per_spike"} | {
    name: name for name in OF_REPEATS if name != "explainable"
}


def test_a_sweep_records_what_the_cells_average(tmp_path: Path) -> None:
    """run.json and the table hold, as test_..., the means of `cell_metrics`."""
    given = KEYS | {
        "exp_name": "exp",
        "model_type": "VaryModel",
        "data_root": str(SHIPPED),
        "bnorm_d": 2,
        "batch_size": 64,
        "n_epochs": 1,
        "lr": 0.01,
        "seed": 5,
        "device": "cpu",
    }
    sweep = run_sweep(given, save_root=str(tmp_path), executor="serial", quiet=True)
    (run,) = sweep.runs()
    row = sweep.results().iloc[0]
    record = strict(run.folder.record)
    found = run.predict("test")
    table = cell_metrics(found)
    assert (table.loc["n"] == 4).all()
    for name, column in RECORDED.items():
        expected = table.loc["mean", column]
        assert record["test"][f"test_{name}"] == pytest.approx(expected, abs=1e-5), name
        assert row[f"test_{name}"] == pytest.approx(expected, abs=1e-5), name
    x, y = found.rates.astype(float), found.targets.astype(float)
    loss = (x - y * np.log(x + 1e-8)).mean()
    assert record["test"]["test_loss"] == pytest.approx(loss, abs=1e-5)
    assert set(record["test"]) == {"test_loss"} | {f"test_{n}" for n in RECORDED}
    assert {"val_loss", "val_acc"} <= set(run.metrics().columns)
    assert not {f"val_{name}" for name in OF_REPEATS} & set(run.metrics().columns)


@pytest.mark.parametrize("kind", ["binned", "firing_rate_10ms"])
def test_a_run_records_what_its_cells_average(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    train: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """In Hz for binned responses too, and whatever the batches of evaluation."""
    spikes = np.random.default_rng(0).poisson(0.4, (3, 3, 40)) * np.r_[1.0:5.0:40j]
    changes = {f"test/repeats/{kind}": spikes, f"test/response/{kind}": spikes.mean(0)}
    write_recording(tmp_path / "rec" / "movie.h5", changes=changes)
    keys = {"response_type": kind, "output_scale": "std", "n_epochs": 1}
    hyps = retina_hyps(tmp_path, **keys)
    (folder,) = train([hyps])
    expected = cell_metrics(Run(folder.path).predict("test")).loc["mean"]
    recorded = strict(folder.record)["test"]
    for name, column in RECORDED.items():
        assert recorded[f"test_{name}"] == pytest.approx(
            expected[column], rel=1e-5, abs=1e-5
        ), name
    monkeypatch.setattr("gridrun.training.trainer.EVAL_BATCH_SIZE", 5)
    (again,) = train([hyps])
    for name, value in strict(again.record)["test"].items():
        assert value == pytest.approx(recorded[name], rel=1e-5, abs=1e-6), name


def test_a_cell_without_signal_is_left_out_of_the_mean(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    train: Callable[..., Any],
) -> None:
    """Repeats that are mirror images share no power: the other cells' mean is kept."""
    random = np.random.default_rng(0)
    signal = random.gamma(1.0, 10.0, (3, 40))
    repeats = signal + random.gamma(1.0, 1.0, (2, 3, 40))
    repeats[1, 1] = 200 - repeats[0, 1]
    changes = {
        "test/repeats/firing_rate_10ms": repeats,
        "test/response/firing_rate_10ms": repeats.mean(0),
    }
    write_recording(tmp_path / "rec" / "movie.h5", changes=changes)
    (folder,) = train([retina_hyps(tmp_path, n_epochs=1)])
    table = cell_metrics(Run(folder.path).predict("test"))
    recorded = strict(folder.record)["test"]
    for name in ("cc_norm", "cc_max", "fev"):
        assert math.isnan(table.loc[1, name])
        expected = table.loc[[0, 2], name].astype(float).mean()
        assert recorded[f"test_{name}"] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.parametrize("has_counts", [True, False])
def test_a_recording_without_repeats_has_no_ceiling(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    train: Callable[..., Any],
    has_counts: bool,
) -> None:
    """None of the columns, and no NaN in any JSON file of the run."""
    changes = {} if has_counts else {"test/response/binned": None}
    write_recording(tmp_path / "rec" / "movie.h5", changes=changes)
    (folder,) = train([retina_hyps(tmp_path, n_epochs=1)])
    recorded = strict(folder.record)["test"]
    expected = {"test_loss", "test_acc"}
    assert set(recorded) == expected | (
        {"test_bits_per_spike"} if has_counts else set()
    )
    assert all(math.isfinite(value) for value in recorded.values())
    for path in folder.path.rglob("*.json"):
        strict(path)


def test_no_cell_with_signal_leaves_no_column(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    train: Callable[..., Any],
) -> None:
    """Where every cell is NaN the metric is not recorded at all."""
    first = np.random.default_rng(0).gamma(1.0, 10.0, (3, 40))
    repeats = np.stack([first, 200 - first])
    changes = {
        "test/repeats/firing_rate_10ms": repeats,
        "test/response/firing_rate_10ms": first,
        "test/response/binned": np.zeros((3, 40)),
    }
    write_recording(tmp_path / "rec" / "movie.h5", changes=changes)
    (folder,) = train([retina_hyps(tmp_path, n_epochs=1)])
    recorded = strict(folder.record)["test"]
    assert set(recorded) == {"test_loss", "test_acc"}


# --- one-hot weights and pruning --------------------------------------------------


def test_onehot_places_are_in_image_pixels(build: Callable[..., Any]) -> None:
    """The likeliest place of each cell, moved by half the receptive field."""
    keys = {"img_shape": [6, 14, 12], "chans": [3], "ksizes": [5, 4]}
    model = build("torchdeepretina", "RetinotopicModel", 2, **keys)
    model.cells, model.centers = [7, 2], [(5, 4), (9, 3)]
    model.hyps = SimpleNamespace(ksizes=keys["ksizes"])
    with torch.no_grad():  # maps are 7 by 5; receptive fields 8 pixels wide
        model.onehot.weight.zero_()
        model.onehot.weight[0, 2 * 5 + 1] = 3.0
        model.onehot.weight[1, 6 * 5 + 4] = -3.0
    table = onehot_places(model)
    assert table[["row", "column"]].to_numpy().tolist() == [[5, 4], [9, 7]]
    assert list(table.index) == [7, 2]
    assert table.distance_px.tolist() == [0.0, 4.0]
    assert (table.probability > 0.99).all()
    assert len(plot_onehot(model).axes) == 3


def test_onehot_places_need_onehot_weights(build: Callable[..., Any]) -> None:
    """Other models are refused."""
    model = build("torchdeepretina", "LN", 2, img_shape=[6, 8, 8])
    with pytest.raises(ConfigError, match="RetinotopicModel"):
        onehot_places(model)


def test_pruning_steps_count_the_channels_left(
    recording: Path, retina_hyps: Callable[..., Any], train: Callable[..., Any]
) -> None:
    """One row per judged removal; accepted ones leave a channel less."""
    keys = {"chans": [3, 3], "ksizes": [3, 3], "prune": True, "prune_intvl": 1}
    hyps = retina_hyps(recording, n_epochs=1, prune_tolerance=0.3, **keys)
    (folder,) = train([hyps])
    table = pruning_steps(Run(folder.path))
    accepted = table.verdict == "accept"
    for name in ("layers.0", "layers.1"):
        left = 3 - (accepted & (table.layer == name)).cumsum()
        assert table[f"n_{name}"].tolist() == left.tolist()
    assert table.attempt.tolist() == list(range(1, len(table) + 1))
    assert len(plot_pruning(Run(folder.path)).axes) == 2


def test_a_run_that_pruned_nothing_has_no_steps(
    recording: Path, retina_hyps: Callable[..., Any], train: Callable[..., Any]
) -> None:
    """Without prune there is no log, and the error says so."""
    (folder,) = train([retina_hyps(recording, n_epochs=1)])
    with pytest.raises(ConfigError, match=r"pruning\.csv"):
        pruning_steps(Run(folder.path))
