"""Checkpoints: everything that resuming needs, loadable with weights_only."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gridrun.config import weights_hash
from gridrun.errors import CheckpointError

CHECKPOINT_VERSION = 1


def plain(value: Any) -> Any:
    """The value as tensors, numbers, text, booleans, None, lists and dicts.

    Of a tensor that is part of another, only the part is kept.

    Raises:
        TypeError: If it holds anything else.
    """
    if isinstance(value, Tensor):
        is_part = value.untyped_storage().nbytes() > value.nbytes
        return value.detach().clone() if is_part else value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def like(value: Any, template: Any) -> Any:
    """Undo `plain` where torch's own state needs the original type."""
    if isinstance(template, Counter):
        return Counter(value)
    if isinstance(template, tuple):
        return tuple(value)
    return value


def to_bytes(checkpoint: Mapping[str, Any]) -> bytes:
    """Serialise a checkpoint."""
    buffer = io.BytesIO()
    torch.save(plain(checkpoint), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes, source: object, device: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing anything that it may hold.

    Args:
        content: The file's bytes.
        source: Named in errors.
        device: Where its tensors go.

    Raises:
        CheckpointError: If it is damaged, or holds more than data.
    """
    try:
        _refuse_inflation(content)
        checkpoint = torch.load(
            io.BytesIO(content), map_location=device, weights_only=True
        )
    except Exception as error:  # the file decides what is raised
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "weights_only" in str(error):  # torch advises to load it unsafely
            reason = "it is no checkpoint, or holds more than tensors and plain data"
        raise CheckpointError(f"{source}: cannot be loaded: {reason}") from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise CheckpointError(f"{source}: not a checkpoint (no model_state_dict)")
    return checkpoint


def _refuse_inflation(content: bytes) -> None:
    """torch stores its archives' parts as they are; others could fill the memory.

    Raises:
        ValueError: If a part is compressed, or larger than the file.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return  # refused by torch, or a format that cannot inflate
    for part in zipfile.ZipFile(io.BytesIO(content)).infolist():
        is_stored = part.compress_type == zipfile.ZIP_STORED
        if not is_stored or part.file_size > len(content):
            raise ValueError(f"its part {part.filename} is compressed")


def read_weights(path: Path) -> dict[str, Any]:
    """The `model_state_dict` of a checkpoint.

    Raises:
        CheckpointError: If the file cannot be read, is none, or is kept by a sweep and
            no longer what its name says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != weights_hash(path):
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not its name)")
    weights = from_bytes(content, path)["model_state_dict"]
    is_sound = isinstance(weights, dict) and all(
        isinstance(value, Tensor) for value in weights.values()
    )
    if not is_sound:
        raise CheckpointError(f"{path}: its model_state_dict holds more than tensors")
    return cast(dict[str, Any], weights)


def misfits(weights: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Why weights cannot be loaded strictly into a model; nothing if they can."""
    expected = model.state_dict()
    found = [f"{name} is missing" for name in expected if name not in weights]
    found += [f"{name} is not in the model" for name in weights if name not in expected]
    for name, tensor in expected.items():
        shape = tuple(getattr(weights.get(name), "shape", tensor.shape))
        if name in weights and shape != tuple(tensor.shape):
            found.append(f"{name} has shape {shape}, the model's {tuple(tensor.shape)}")
    return found
