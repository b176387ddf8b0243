"""How the hot loops of learning are compiled: by numba, once per machine, without the interpreter's lock."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeVar, cast

from numba import njit

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

FAST: Final = {"contract", "reassoc", "nsz"}
"""Sums may be reordered and fused once, when compiling; NaN and infinity keep their meaning."""

_njit: Any = njit  # its published signature lacks the options that leave out wrappers for Python and C
_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}


def compiled(function: FunctionT) -> FunctionT:
    """Compile ``function`` for each combination of argument types, to be called by compiled functions only."""
    return cast(FunctionT, _njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def inlined(function: FunctionT) -> FunctionT:
    """Like `compiled`, for what is called from one place: it becomes part of its caller, which halves compile time."""
    return cast(FunctionT, _njit(**_OPTIONS, inline="always")(function))


def compiled_and_kept(function: FunctionT) -> FunctionT:
    """Compile ``function`` for Python, and keep the machine code beside the source or in the user's cache directory.

    What it calls is part of it, and is part of the key too: numba itself notices changes in the function's own file
    only. Therefore define it behind the functions of its module that it calls.
    """
    function.__qualname__ += "_" + _digest(function)
    return cast(FunctionT, _njit(**_OPTIONS, no_cfunc_wrapper=True, cache=True)(function))


def _digest(function: Callable[..., Any]) -> str:
    """Return a short digest of all that the machine code of ``function`` follows from.

    That is the files of the functions that it leads to, the constants that these name, and the files of the named
    tuples in their signatures.
    """
    found, files, constants = set[object](), {__file__}, set[str]()
    waiting: list[object] = [function]
    while waiting:
        entry = waiting.pop()
        entry = getattr(entry, "py_func", getattr(entry, "_defn", entry))
        if isinstance(entry, int | float | str):
            constants.add(repr(entry))
        elif isinstance(entry, type) and hasattr(entry, "_fields"):
            files.add(str(sys.modules[entry.__module__].__file__))
        elif isinstance(entry, FunctionType) and entry not in found:
            found.add(entry)
            files.add(entry.__code__.co_filename)
            names = (*entry.__code__.co_names, *map(str, entry.__annotations__.values()))
            waiting.extend(entry.__globals__[name] for name in names if name in entry.__globals__)
    parts = (*(Path(file).read_bytes() for file in sorted(files)), *map(str.encode, sorted(constants)))
    return sha256(b"".join(parts)).hexdigest()[:16]


@contextmanager
def alone_while_compiling(function: Callable[..., object]) -> Iterator[None]:
    """Guard a call of a function that `compiled_and_kept` made: of many processes one compiles it, the others wait.

    Nothing is waited for once the function has been called in this process, nor for the compiling of other functions.
    """
    dispatcher = cast(Any, function)
    if dispatcher.signatures:
        yield
        return
    folder = Path(dispatcher.stats.cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{dispatcher.py_func.__name__}.compiling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
