"""Checkpoints: plain data only, and nothing in them is ever executed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gridrun.errors import CheckpointError
from gridrun.training.checkpoint import (
    from_bytes,
    like,
    plain,
    read_weights,
    to_bytes,
)

# torch warns of pickles of other protocols than its own before it refuses them
OTHER_PROTOCOLS = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def some_checkpoint() -> dict[str, Any]:
    """A small checkpoint with every plain type."""
    return {
        "model_state_dict": {"weight": torch.arange(6.0).view(2, 3)},
        "epoch": 3,
        "hyps": {"lr": 0.1, "name": "a µ", "chans": [8, 8], "none": None, "on": True},
        "rng": {"torch": torch.get_rng_state()},
        "milestones": {10: 1, 20: 1},
    }


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal in values and types."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            type(b) is dict
            and a.keys() == b.keys()
            and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# --- plain ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.1, 0.1),
        ("text", "text"),
        ((1, (2, 3)), [1, [2, 3]]),
        (np.float64(0.5), 0.5),
        (np.int32(4), 4),
        (np.bool_(True), True),
        (Counter([1, 1, 2]), {1: 2, 2: 1}),
        (OrderedDict(a=(1,)), {"a": [1]}),
    ],
)
def test_plain_gives_python_s_own_types(value: Any, expected: Any) -> None:
    """Tuples become lists, mappings dicts, numpy scalars python numbers."""
    assert same(plain(value), expected)


def test_plain_takes_parameters_as_tensors() -> None:
    """A parameter is kept without its graph."""
    kept = plain({"w": nn.Parameter(torch.ones(2))})["w"]
    assert type(kept) is torch.Tensor
    assert not kept.requires_grad


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        b"bytes",
        np.zeros(2),
        nn.ReLU(),
        print,
        1j,
        Path("a"),
        range(3),
    ],
)
def test_plain_refuses_other_types(value: Any) -> None:
    """Anything else is refused by name, however deep it lies."""
    with pytest.raises(TypeError, match=type(value).__name__):
        plain({"a": [1, {"b": value}]})


def test_like_undoes_plain_where_torch_needs_it() -> None:
    """Counters and tuples get their type back, others stay."""
    assert type(like({1: 2}, Counter())) is Counter
    assert like([1, 2], (0, 0)) == (1, 2)
    assert like([1, 2], [0]) == [1, 2]


# --- files ------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was() -> None:
    """Written and read, every value, type and bit is the same."""
    assert same(some_checkpoint(), from_bytes(to_bytes(some_checkpoint()), "test"))


def test_a_checkpoint_loads_with_weights_only() -> None:
    """torch.load needs no code of ours to read it."""
    content = io.BytesIO(to_bytes(some_checkpoint()))
    assert same(some_checkpoint(), torch.load(content, weights_only=True))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_keep_their_type(dtype: torch.dtype) -> None:
    """Every type of tensor survives, also empty and scalar ones."""
    state = {"a": torch.ones(3, dtype=dtype), "b": torch.zeros(0), "c": torch.tensor(2)}
    content = to_bytes({"model_state_dict": state})
    assert same(state, from_bytes(content, "test")["model_state_dict"])


def test_special_numbers_survive() -> None:
    """NaN, infinities and minus zero are kept bit for bit."""
    numbers = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    content = to_bytes({"model_state_dict": {"w": numbers}, "x": float("inf")})
    found = from_bytes(content, "test")
    assert found["model_state_dict"]["w"].numpy().tobytes() == numbers.numpy().tobytes()
    assert found["x"] == float("inf")


def test_a_whole_optimizer_is_plain() -> None:
    """Model and optimizer state of a trained model go through."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = to_bytes(
        {"model_state_dict": model.state_dict(), "optim": optimizer.state_dict()}
    )
    found = from_bytes(content, "test")["optim"]["state"][0]["exp_avg"]
    assert torch.equal(found, optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.str_("a")])
def test_numpy_scalars_do_not_spoil_a_checkpoint(number: Any) -> None:
    """A checkpoint in which a metric is a numpy scalar can be loaded."""
    content = to_bytes({"model_state_dict": {}, "metrics": {"val_loss": number}})
    assert from_bytes(content, "test")["metrics"] == {"val_loss": number.item()}


# --- hostile and damaged files ----------------------------------------------------


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path, how: str) -> None:
        self.path, self.how = path, how

    def __reduce__(self) -> Any:
        if self.how == "open":
            return open, (str(self.path), "w")
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def hostile_files(payload: Payload) -> dict[str, bytes]:
    """The payload in each form that torch.load would read."""
    modern, legacy, swapped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    whole = {"model_state_dict": {}, "x": payload}
    torch.save(whole, modern)
    torch.save(whole, legacy, _use_new_zipfile_serialization=False)
    good = zipfile.ZipFile(io.BytesIO(to_bytes({"model_state_dict": {}})))
    with zipfile.ZipFile(swapped, "w") as archive:
        for item in good.infolist():
            content = good.read(item)
            if item.filename.endswith("data.pkl"):
                content = pickle.dumps(whole, protocol=2)
            archive.writestr(item, content)
    return {
        "modern": modern.getvalue(),
        "legacy": legacy.getvalue(),
        "swapped": swapped.getvalue(),
        "pickle": pickle.dumps(whole, protocol=2),
    }


@pytest.mark.parametrize("how", ["open", "system", "eval"])
@pytest.mark.parametrize("form", ["modern", "legacy", "swapped", "pickle"])
def test_hostile_files_execute_nothing(tmp_path: Path, form: str, how: str) -> None:
    """A file that would run code is refused, and the code has not run."""
    mark = tmp_path / "executed"
    content = hostile_files(Payload(mark, how))[form]
    with pytest.raises(CheckpointError, match=r"some/file\.pt: cannot be loaded"):
        from_bytes(content, "some/file.pt")
    assert not mark.exists()


def test_the_payload_is_one(tmp_path: Path) -> None:
    """Loaded without care the same file does run its code."""
    mark = tmp_path / "executed"
    content = hostile_files(Payload(mark, "eval"))["modern"]
    torch.load(io.BytesIO(content), weights_only=False)
    assert mark.exists()


def test_a_pickled_module_is_refused() -> None:
    """A whole model instead of its state dict is no checkpoint."""
    content = io.BytesIO()
    torch.save({"model_state_dict": {}, "model": nn.Linear(2, 2)}, content)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        from_bytes(content.getvalue(), "test")


def test_truncated_files_are_refused() -> None:
    """Every proper beginning of a checkpoint is refused with its name."""
    content = to_bytes(some_checkpoint())
    for length in {*range(0, len(content), 97), *range(30), len(content) - 1}:
        with pytest.raises(CheckpointError, match=r"some/file\.pt"):
            from_bytes(content[:length], "some/file.pt")


@OTHER_PROTOCOLS
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    """Bytes that are no checkpoint raise CheckpointError and nothing else."""
    with pytest.raises(CheckpointError):
        from_bytes(content, "test")


@OTHER_PROTOCOLS
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_arbitrary_pickles_are_refused(content: bytes) -> None:
    """Bytes that begin as a pickle does raise CheckpointError and nothing else."""
    with pytest.raises(CheckpointError):
        from_bytes(b"\x80\x02" + content, "test")


@OTHER_PROTOCOLS
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_pickles_are_refused_or_read(data: st.DataObject) -> None:
    """A changed byte in the pickle is an error of ours or gives other data."""
    good = zipfile.ZipFile(io.BytesIO(to_bytes(some_checkpoint())))
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for item in good.infolist():
            content = bytearray(good.read(item))
            if item.filename.endswith("data.pkl"):
                at = data.draw(st.integers(0, len(content) - 1))
                content[at] = data.draw(st.integers(0, 255))
            archive.writestr(item.filename, bytes(content))
    try:
        found = from_bytes(changed.getvalue(), "test")
    except CheckpointError:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, torch.ones(2), "text"])
def test_other_data_are_no_checkpoint(content: Any) -> None:
    """Data without a model's state are refused, and what is missing is said."""
    file = io.BytesIO()
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="model_state_dict"):
        from_bytes(file.getvalue(), "test")


def test_kept_weights_are_what_their_name_says(tmp_path: Path) -> None:
    """A file in init_weights/ that another took the place of is refused."""
    content = to_bytes({"model_state_dict": {"w": torch.ones(2)}})
    kept = tmp_path / "init_weights" / f"{hashlib.sha256(content).hexdigest()}.pt"
    kept.parent.mkdir()
    kept.write_bytes(content)
    assert torch.equal(read_weights(kept)["w"], torch.ones(2))
    kept.write_bytes(to_bytes({"model_state_dict": {"w": torch.zeros(2)}}))
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_weights(kept)
