"""How the hot loops of learning are compiled: by numba, once per machine, without the interpreter's lock."""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeVar, cast

import structlog
from numba import njit
from numba.core.caching import FunctionCache

log = structlog.get_logger(__name__)
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
    dispatcher = _njit(**_OPTIONS, no_cfunc_wrapper=True)(function)
    dispatcher._cache = KeptCode(function)  # type: ignore[no-untyped-call]  # what its own `enable_caching` does, with other code
    return cast(FunctionT, dispatcher)


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


class KeptCode(FunctionCache):
    """The machine code of one function on disk. What is not there yet is compiled by a process of its own.

    A process that compiles a function keeps its helpers compiled by themselves, too, and where sums may be reordered,
    calls of these give other last bits than what is read from the disk. So everybody reads it from there, and of many
    processes one has it compiled while the others wait.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:  # noqa: ANN401 - numba's protocol
        """Return the code for these argument types; ``None``: compile it here."""
        load: Any = super().load_overload
        found = load(sig, target_context)
        if found is not None or self._py_func.__module__ == "__main__":  # which no other process can import
            return found
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self._py_func.__name__}.compiling.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = load(sig, target_context)
            if found is None and _compile_elsewhere(self._py_func, sig):
                found = load(sig, target_context)
        return found


def _compile_elsewhere(function: Callable[..., object], signature: object) -> bool:
    """Have a new process compile and keep a function of a module; whether it did."""
    given = pickle.dumps((sys.path, function.__module__, function.__name__)) + pickle.dumps(signature)
    command = [sys.executable, "-m", compile_and_keep.__module__]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, input=given, stderr=subprocess.PIPE, env=os.environ | paths, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        log.warning("compiled here, so that last bits may differ", function=function.__qualname__, reason=reason)
    return done.returncode == 0


def compile_and_keep(module: str, name: str, signature: object) -> None:
    """Compile a function that `compiled_and_kept` made, in this process."""
    dispatcher = getattr(importlib.import_module(module), name)
    dispatcher.enable_caching()
    dispatcher.compile(signature)


def main() -> None:
    """Do what `_compile_elsewhere` asks."""
    sys.path, module, name = pickle.load(sys.stdin.buffer)
    compile_and_keep(module, name, pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    main()
