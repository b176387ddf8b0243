"""`BridgeVecEnv`: the environments of the bridge for Stable-Baselines3 (extra ``sb3``).

Does what ``DummyVecEnv`` over the same ids does, bit for bit, except where there would have to be one Python object per
environment: such attributes and methods are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.gym_vector import BridgeVectorEnv
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError as error:
    raise ConfigError(
        f"env_bridge.sb3 needs stable-baselines3 ({error}); install it: pip install 'ssm-swarm[sb3]'"
    ) from error

FAULTS: Final = ("diverged", "lost")
"""Infos of a step that ended an episode by a fault; see `BridgeVectorEnv`."""
DRAWN: Final = "rgb_array"
COMMON: Final = ("action_space", "metadata", "observation_space", "render_mode", "spec")
"""Attributes of single environments that are the same for all of them."""


class BridgeVecEnv(VecEnv):
    """N environments of one id that any algorithm of Stable-Baselines3 trains on.

    Episodes that end are reset in the same step. Infos hold ``terminal_observation`` and ``TimeLimit.truncated`` beside
    Gymnasium's own, and ``diverged`` or ``lost`` where a simulation broke down or its worker died; ``episode`` comes
    from a ``VecMonitor`` around it. Seeds given by ``seed`` count at the next ``reset``: environment e gets
    ``seed + e``. With ``render_mode="rgb_array"``, ``render`` and ``get_images`` draw.

    Args:
        env_id: a Gymnasium id.
        num_envs: how many.
        options: everything else that `BridgeVectorEnv` takes, but the autoreset mode, and ``rgb_array`` alone of the
            render modes.

    Raises:
        ConfigError: as `BridgeVectorEnv`, and where stable-baselines3 is missing (when this module is imported).
    """

    def __init__(self, env_id: str, num_envs: int = 1, **options: Any) -> None:  # noqa: ANN401 - as Gymnasium's
        if "autoreset_mode" in options:
            raise ConfigError("autoreset_mode is always SAME_STEP for Stable-Baselines3; leave it out")
        if options.get("render_mode") not in (None, DRAWN):
            raise ConfigError(
                f"got render_mode={options['render_mode']!r}; Stable-Baselines3 draws with {DRAWN!r}, or not at all"
            )
        self._env = BridgeVectorEnv(env_id, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        super().__init__(num_envs, self._env.single_observation_space, self._env.single_action_space)

    def reset(self) -> NDArray[np.float64]:
        """Start new episodes, with the seeds of the last ``seed``; return observations (E, O)."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, infos = self._env.reset(seed=seeds)
        self.reset_infos = split_infos(infos, self.num_envs)
        self._reset_seeds()
        return observation

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Send ``actions`` (E, A) out; the environments step while the caller goes on. Call ``step_wait`` next."""
        self._env.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations (E, O), rewards (E,) float32, dones (E,) and an info per environment.

        Raises:
            ActionError: an action was not finite; nothing was stepped.
        """
        observation, reward, terminated, truncated, batched = self._env.step_wait()
        infos = split_infos(batched, self.num_envs)
        done = terminated | truncated
        for index in np.flatnonzero(done):
            last = infos[index].pop("final_info", {})  # the environments of a lost worker told nothing
            last["terminal_observation"] = infos[index].pop("final_obs", observation[index])
            last |= {name: infos[index].pop(name) for name in FAULTS if name in infos[index]}
            self.reset_infos[index], infos[index] = infos[index], last
        for info, is_cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            # After a fault nothing is worth bootstrapping from.
            info["TimeLimit.truncated"] = is_cut and not any(name in info for name in FAULTS)
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """End the stepping workers; closing again does nothing."""
        self._env.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Accept no options of resets. Raises ``ConfigError`` for any: `set_tasks` and the constructor take all."""
        if any(options if isinstance(options, list) else [options]):
            raise ConfigError(f"got reset options {options!r}; give options to the constructor, tasks to set_tasks")

    def set_tasks(self, tasks: Sequence[TaskParameters]) -> None:
        """Give each environment its task, from the next step on. Raises ``ConfigError`` where one does not fit."""
        self._env.set_tasks(tasks)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return what is common to all environments (`COMMON`), once per index. Raises ``AttributeError`` otherwise."""
        if attr_name not in COMMON:
            raise self._refusal("attribute", attr_name, f"; known: {', '.join(COMMON)}")
        shared = {
            "action_space": self._env.single_action_space,
            "observation_space": self._env.single_observation_space,
        }
        value = shared[attr_name] if attr_name in shared else getattr(self._env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:  # noqa: ANN401 - SB3's
        """Raise ``AttributeError``: options are given to the constructor."""
        raise self._refusal("attribute", attr_name, " that can be set; give options to the constructor")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,  # noqa: ANN401 - SB3's
        indices: VecEnvIndices = None,
        **method_kwargs: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Raise ``AttributeError``: there is no Python object whose method could be called."""
        raise self._refusal("method", method_name, "; step DummyVecEnv where you need one")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return ``False`` for each index: no environment here has a wrapper around it."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return a picture of each environment; none where it was made without ``render_mode``."""
        return [None] * self.num_envs if self.render_mode is None else list(self._env.render())

    def _refusal(self, kind: str, name: str, advice: str) -> AttributeError:
        return AttributeError(f"environments of the bridge are rows of arrays and have no {kind} {name!r}{advice}")


def split_infos(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return one info per environment from Gymnasium's batched ones (arrays with masks ``_name``, maps of them)."""
    split: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None:  # a mask itself
            continue
        rows = split_infos(values, num_envs) if isinstance(values, Mapping) else values
        for index in np.flatnonzero(mask):
            split[index][name] = rows[index]
    return split
