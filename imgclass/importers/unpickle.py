"""Read the pickles of the CIFAR archives without running anything they name.

A pickle calls whatever it names. Here it may name only what an array consists of, and
gets stand-ins for even that, which check their arguments and build plain arrays.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gridrun.errors import DataError

NUMPY_TYPES: Final = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {
    "b1",
    "f4",
    "f8",
}
BYTE_ORDERS: Final = {"<", ">", "|", "="}


def unpickle(content: bytes, where: str) -> Any:
    """Read a pickle of plain values and NumPy arrays, also one from Python 2.

    Args:
        content: The pickle.
        where: The file, for messages.

    Returns:
        The value; an array in it that is no member of the outermost dictionary
        stays a stand-in.

    Raises:
        DataError: It names anything else, or is damaged.
    """
    try:
        value = _Unpickler(content, where).load()
    except DataError:
        raise
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise DataError(
            f"{where}: not a readable pickle ({type(error).__name__}: {error}); "
            "expected a batch of the official python archive"
        ) from error
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _plain(item: Any) -> Any:
    return item.array if isinstance(item, _Array) else item


class _Unpickler(pickle.Unpickler):
    """Gives stand-ins for the globals of arrays and refuses all others.

    Text of Python 2 becomes Latin-1, which maps bytes one to one.
    """

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a global."""
        full_name = f"{module}.{name}"
        # From NumPy 2 on the module is numpy._core; the old name is in old files.
        function = _FUNCTIONS.get(full_name.replace("numpy._core.", "numpy.core."))
        if function is None:
            raise DataError(
                f"{self._where}: the pickle asks for {full_name!a}, which a data set "
                "does not need; nothing of it was run. Do not trust this file"
            )
        return _Global(self._where, full_name, function)


class _Global:
    """Stands for one global; a pickle may call it, but not change it."""

    __slots__ = ("_function", "_name", "_where")

    def __init__(self, where: str, name: str, function: Callable[..., Any]) -> None:
        self._where, self._name, self._function = where, name, function

    def __call__(self, *arguments: object) -> object:
        try:
            return self._function(self, *arguments)
        except (TypeError, ValueError, LookupError) as error:
            raise self.refusal() from error

    def __setstate__(self, state: object) -> None:
        raise self.refusal()

    def refusal(self) -> DataError:
        """The error of a call with arguments that no array has."""
        return DataError(
            f"{self._where}: the pickle uses {self._name} as no array does; nothing of "
            "it was run. Do not trust this file"
        )

    def is_(self, name: str) -> bool:
        """Whether this stands for that global."""
        return self._name == name


class _Type:
    """Stands for a NumPy type of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, name: object) -> None:
        if name not in NUMPY_TYPES:
            raise ValueError("no type of plain numbers")
        self.dtype: np.dtype[Any] = np.dtype(str(name))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *rest = state
        if order not in BYTE_ORDERS or any(rest[:3]):
            raise ValueError("no type of plain numbers")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array until its content is known."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        flat = np.frombuffer(_bytes(content), kind.dtype)
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


def _bytes(content: object) -> bytes:
    """Bytes as they are, or as the Latin-1 text that Python 2 made of them."""
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, bytes):
        return content
    raise TypeError("expected bytes")


def _make_array(_: _Global, subtype: object, shape: object, code: object) -> _Array:
    is_plain = isinstance(subtype, _Global) and subtype.is_("numpy.ndarray")
    if not is_plain or shape != (0,) or code not in ("b", b"b"):
        raise ValueError("no empty array")
    return _Array()


def _make_type(_: _Global, name: object, *flags: object) -> _Type:
    if any(flag not in (0, 1) for flag in flags):
        raise ValueError("no flags")
    return _Type(name)


def _make_scalar(_: _Global, kind: object, content: object) -> Any:
    if not isinstance(kind, _Type):
        raise TypeError("expected a type")
    (value,) = np.frombuffer(_bytes(content), kind.dtype)
    return value


def _encode(_: _Global, text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("not how bytes are pickled")
    return text.encode("latin1")


def _refuse(self: _Global, *arguments: object) -> object:
    raise self.refusal()


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "numpy.core.multiarray._reconstruct": _make_array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy.dtype": _make_type,
    "numpy.ndarray": _refuse,  # an argument of _reconstruct, never called
    "_codecs.encode": _encode,
}
