"""Transforms that a cohort shares: the same bits however they come about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gridrun.nn import Spectrum, set_method
from torchdeepretina import datas
from torchdeepretina.windows import model_inputs

CPU = torch.device("cpu")
KEYS = {"conv_method": "fourier"}


@pytest.fixture
def opened(
    tmp_path: Path, write_recording: Callable[..., Any], retina_hyps: Callable[..., Any]
) -> Callable[..., Any]:
    """Function (**keys) that opens a small recording."""
    write_recording(tmp_path / "rec" / "movie.h5")
    return lambda **keys: datas.open_data(retina_hyps(tmp_path, **KEYS, **keys), CPU)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("n_mib", ["auto", 0])
@pytest.mark.parametrize("normalizer", ["global", "none", "per_channel", "per_sample"])
def test_a_batch_s_spectrum_is_that_of_its_inputs(
    opened: Callable[..., Any], split: str, n_mib: object, normalizer: str
) -> None:
    """Bit for bit, kept or not, in any order, windows twice."""
    part = getattr(opened(spectra_cache_mib=n_mib, normalizer=normalizer), split)
    batch = part.batch(torch.tensor([3, 0, 3, 1]))
    expected = Spectrum.of(batch.inputs)
    assert torch.equal(batch.spectrum.values, expected.values)
    assert batch.spectrum.size == expected.size
    assert len(batch.spectrum) == len(batch) == 4


def test_what_is_read_ahead_has_the_same_spectrum(opened: Callable[..., Any]) -> None:
    """Inputs from another process change nothing."""
    train = opened().train
    indices = torch.tensor([2, 7])
    read = torch.from_numpy(train.rows.open()[train.starts(indices).numpy()].copy())
    one, other = train.batch(indices), train.batch(indices, read)
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.spectrum.values, other.spectrum.values)


def test_all_transforms_are_kept_only_where_they_fit(
    opened: Callable[..., Any],
) -> None:
    """The limit is a whole stimulus, a byte less keeps none."""
    spectra = opened().train.spectra
    kept = spectra.kept
    assert kept.shape[0] == len(spectra.stimulus)
    n_bytes = kept.numel() * kept.element_size()
    for limit, is_kept in ((n_bytes, True), (n_bytes - 1, False)):
        other = opened().train.spectra
        other.max_bytes = limit
        assert (other.kept is not None) is is_kept


def test_transforms_are_made_once_and_only_for_who_asks(
    opened: Callable[..., Any], build: Callable[..., Any]
) -> None:
    """Directly computed models get windows, others spectra; both once a batch."""
    keys = {"img_shape": [4, 8, 8], "chans": [2, 2], "ksizes": [3, 3, 3]}
    model = build("torchdeepretina", "BNCNN", 3, **keys)
    batch = opened().train.batch(torch.arange(5))
    set_method(model, "direct")
    assert model_inputs(model, batch) is batch.inputs
    assert "spectrum" not in vars(batch)
    other = opened().train.batch(torch.arange(5))
    set_method(model, "fourier")
    assert model_inputs(model, other) is model_inputs(model, other)
    assert "inputs" not in vars(other)


def test_double_precision_has_spectra_of_its_own(opened: Callable[..., Any]) -> None:
    """Of inputs normalised as in single precision, shared by who asks for them."""
    batch = opened().train.batch(torch.arange(3))
    double = batch.to(torch.float64)
    assert batch.to(torch.float64) is double
    assert batch.to(torch.float32) is batch
    assert double.inputs.dtype is double.targets.dtype is torch.float64
    assert torch.equal(double.inputs.float(), batch.inputs)
    assert double.spectrum.values.dtype is torch.complex128
    assert torch.equal(double.spectrum.values, Spectrum.of(double.inputs).values)
