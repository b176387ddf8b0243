"""What a user of `BridgeVectorEnv` may say, checked: a wrong value is a ``ConfigError``.

Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Final, TypeGuard

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.autoreset import Mask
from env_bridge.worker_process import processors
from swarm.errors import ConfigError

ACTIONS: Final = ("gymnasium", "strict")
MAX_SEED: Final = 1 << 63
MIN_PATIENCE_S: Final = 0.001
MAX_PATIENCE_S: Final = 1e6
FEW: Final = 8
"""Environments for which telling a worker takes about as long as stepping them here."""


def check(num_envs: int, workers: int | None, actions: str, patience_s: float) -> int:
    """Return the number of workers. Raises ``ConfigError`` for what cannot be."""
    if not _is_whole(num_envs) or num_envs < 1:
        raise ConfigError(f"got num_envs={num_envs!r}; expected a whole number of at least 1")
    if (
        not isinstance(patience_s, int | float)
        or isinstance(patience_s, bool)
        or not MIN_PATIENCE_S <= patience_s <= MAX_PATIENCE_S
    ):
        raise ConfigError(
            f"got patience_s={patience_s!r}; expected seconds from {MIN_PATIENCE_S:g} to {MAX_PATIENCE_S:.0f}"
        )
    if workers is not None and (not _is_whole(workers) or workers < 0):
        raise ConfigError(f"got workers={workers!r}; expected 0 (this process), a number of processes, or None")
    if not isinstance(actions, str) or actions not in ACTIONS:
        raise ConfigError(f"got actions={actions!r}; expected one of {', '.join(ACTIONS)}")
    if workers is not None:
        return int(workers)
    return 0 if num_envs <= FEW else len(processors())


def autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode of that name or value. Raises ``ConfigError``."""
    known = {key: item for item in AutoresetMode for key in (item, item.name, item.name.lower(), item.value)}
    if not isinstance(mode, AutoresetMode | str) or mode not in known:
        raise ConfigError(f"got autoreset_mode={mode!r}; expected one of {', '.join(m.name for m in AutoresetMode)}")
    return known[mode]


def limits(actions: Space[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lowest and highest actions (E, …) of a batched space."""
    if isinstance(actions, MultiDiscrete):
        return actions.start, actions.start + actions.nvec - 1
    assert isinstance(actions, Box), "what batches of spaces of arrays are"
    return actions.low, actions.high


def reset_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a reset by name, the caller's to change. Raises ``ConfigError`` for what names none."""
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"got reset options {options!r}; expected a dictionary, such as {{'reset_mask': …}}, or None")
    return dict(options or {})


def reset_mask(mask: Any, num_envs: int) -> Mask:  # noqa: ANN401 - from a user's dictionary
    """The environments to reset (E,); ``None``: all. Raises ``ConfigError``."""
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ConfigError(f"reset_mask: got {mask!r}, expected a bool array of shape ({num_envs},)")
    if not mask.any():
        raise ConfigError("reset_mask is false everywhere; name at least one environment")
    return mask


def seeds(given: int | Sequence[int | None] | None, unstarted: NDArray[np.bool_]) -> list[int | None]:
    """One seed for each environment, ``None`` where its generator goes on.

    Args:
        given: as `BridgeVectorEnv.reset` takes them.
        unstarted: (E,) environments without a generator yet, which get a random seed where none is given.

    Raises:
        ConfigError: not whole numbers from 0, or not as many as environments.
    """
    num_envs = len(unstarted)
    chosen: list[int | None]
    if given is None:
        chosen = [None] * num_envs
    elif isinstance(given, Iterable) and not (isinstance(given, np.ndarray) and given.ndim == 0):
        chosen = [_whole(seed) for seed in given]
    else:
        chosen = [(_whole(given) or 0) + index for index in range(num_envs)]
    if len(chosen) != num_envs:
        raise ConfigError(f"got {len(chosen)} seeds for {num_envs} environments")
    if any(seed is not None and not 0 <= seed < MAX_SEED for seed in chosen):
        raise ConfigError(f"got seed {given}; expected whole numbers from 0, below 2^63")
    fresh = np.random.SeedSequence().generate_state(num_envs).tolist()
    unseeded = [seed is None and new for seed, new in zip(chosen, unstarted.tolist(), strict=True)]
    return [random if draw else seed for random, draw, seed in zip(fresh, unseeded, chosen, strict=True)]


def check_state(state: object) -> None:
    """Raise ``ConfigError`` unless this is a mapping of names to arrays."""
    if not isinstance(state, Mapping) or not all(isinstance(array, np.ndarray) for array in state.values()):
        raise ConfigError(f"got a state of type {type(state).__name__}, expected the arrays that get_state returned")


def check_branch(state: Mapping[str, NDArray[np.generic]], index: int, copies: int) -> None:
    """Raise ``ConfigError`` unless ``state`` holds an environment ``index``, and there is to be a copy at least."""
    check_state(state)
    sizes = {array.shape[:1] for array in state.values()}
    if len(sizes) != 1 or sizes == {()}:
        raise ConfigError("got a state whose arrays are not of as many environments; expected what get_state returned")
    num_envs = sizes.pop()[0]
    if not _is_whole(index) or not 0 <= index < num_envs:
        raise ConfigError(f"got index={index!r}; the state has environments 0 to {num_envs - 1}")
    if not _is_whole(copies) or copies < 1:
        raise ConfigError(f"got copies={copies!r}; expected a whole number of at least 1")


def _whole(seed: object) -> int | None:
    if seed is None:
        return None
    if not _is_whole(seed):
        raise ConfigError(f"got seed {seed!r}; expected a whole number or None for each environment")
    return int(seed)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)
