"""How the hot loops of learning are compiled: by numba, once per machine, without the interpreter's lock."""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeVar, cast

import structlog
from numba import config, njit
from numba.core.caching import FunctionCache

from swarm.lifeline import die_with_parent

log = structlog.get_logger(__name__)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

FAST: Final = {"contract", "reassoc", "nsz"}
"""Sums may be reordered and fused once, when compiling; NaN and infinity keep their meaning."""

TIMEOUT_S: Final = 300
"""How long the process that compiles one function may take; the longest ones take 15 s."""

# The path comes by the pipe, not by PYTHONPATH: the environment reaches the processes that numba starts as well, and a
# file beside the user's program that is named like a standard module would be imported by each of them.
_PROGRAM: Final = f"""import pickle, sys
sys.path = pickle.load(sys.stdin.buffer)
from {__name__} import main
main()"""

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
            if found is None:
                reason = _compile_elsewhere(self._py_func, sig)
                found = load(sig, target_context)
                if found is None:
                    reason = reason or f"nothing was kept in {folder}"
                    name = self._py_func.__qualname__
                    log.warning("compiled here, so that last bits may differ", function=name, reason=reason)
        return found


def _compile_elsewhere(function: Callable[..., object], signature: object) -> str:
    """Have a new process compile and keep a function of a module; why it did not, or nothing."""
    if not sys.executable:
        return "no interpreter is known that could compile it elsewhere (sys.executable)"
    path = [entry for entry in sys.path if isinstance(entry, str)]  # others are ignored when something is imported
    asked = (os.getpid(), function.__module__, function.__name__)
    given = pickle.dumps(path) + pickle.dumps(asked) + pickle.dumps(signature)
    cache = str(getattr(config, "CACHE_DIR", ""))  # which the program may have set itself
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-P", "-c", _PROGRAM]
    try:  # in a group of its own, because Ctrl-C is for this process, which then ends it
        done = subprocess.run(
            command,
            input=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=TIMEOUT_S,
            process_group=0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the process that compiles it took longer than {TIMEOUT_S} s"
    except OSError as error:
        return f"no process to compile it could be started: {error}"
    if done.returncode < 0:
        return f"the process that compiles it was ended by {_name_of(-done.returncode)}"
    last_lines = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return "".join(last_lines) or f"exit status {done.returncode}" if done.returncode else ""


def _name_of(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def compile_and_keep(module: str, name: str, signature: object) -> None:
    """Compile a function that `compiled_and_kept` made, in this process."""
    dispatcher = getattr(importlib.import_module(module), name)
    dispatcher.enable_caching()
    dispatcher.compile(signature)


def main() -> None:
    """Do what `_compile_elsewhere` asks."""
    parent, module, name = pickle.load(sys.stdin.buffer)
    die_with_parent(parent)
    compile_and_keep(module, name, pickle.load(sys.stdin.buffer))
