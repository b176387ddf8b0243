"""The processes that `bridge` measures, one candidate each: ``python bridge_players.py KIND ENV_ID NUM_ENVS FOLDER …``.

A player makes ready, says so in a line on standard output, and then plays for as long as each line on standard input
asks: ``<seconds> <script>`` is answered by the environment steps made and the seconds that they took. It ends with its
standard input, and with whoever started it.

A script is what all play: actions, and where the environments are reset. Rewinding it is not timed.

Letters: T steps of a script, E environments, A action.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from swarm.lifeline import die_with_parent

SEED: Final = 7
STEPS: Final = {"HalfCheetah-v4": 400, "Ant-v4": 100, "Humanoid-v4": 100}


class PeerMissing(Exception):
    """A package that is measured beside us is not installed."""


class Stage(Protocol):
    """What steps a script: ``step`` is timed, ``rewind`` is not; ``finish`` waits for what is still under way."""

    length: int

    def rewind(self) -> None: ...

    def step(self, t: int) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


def script_actions(env_id: str, num_envs: int) -> NDArray[np.float32]:
    """Return uniform actions within the limits, (T, E, A)."""
    space = gymnasium.make(env_id).action_space
    assert isinstance(space, gymnasium.spaces.Box)
    shape = (STEPS[env_id], num_envs, *space.shape)
    return np.random.default_rng(0).uniform(space.low, space.high, shape).astype(np.float32)


def record_script(env_id: str, num_envs: int, path: Path) -> None:
    """Step Gymnasium's `SyncVectorEnv` through the actions; write where it reset and to which states."""
    env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync")
    assert isinstance(env, gymnasium.vector.SyncVectorEnv)
    datas = [single.unwrapped.data for single in env.envs]  # type: ignore[attr-defined]  # MuJoCo's have it
    actions = script_actions(env_id, num_envs)
    env.reset(seed=SEED)
    states = [[np.concatenate((data.qpos, data.qvel)) for data in datas]]
    ended = np.zeros(num_envs, np.bool_)
    resets = np.zeros(actions.shape[:2], np.bool_)
    for t, action in enumerate(actions):
        resets[t] = ended
        if t == len(actions) - 1:
            check = np.stack([data.qpos for data in datas])
        observation, _, terminated, truncated, _ = env.step(action)
        states += [[np.concatenate((data.qpos, data.qvel)) for data in datas]]
        ended = terminated | truncated
    env.close()
    write_script(path, actions, resets, np.array(states), check, is_step=False, observation=observation)


def write_script(
    path: Path,
    actions: NDArray[np.float32],
    resets: NDArray[np.bool_],
    states: NDArray[np.float64],
    check: NDArray[np.float64],
    *,
    is_step: bool,
    observation: NDArray[np.floating],
) -> None:
    """Write a script.

    Args:
        resets: (T, E), where a new episode starts.
        states: (T + 1, E, Q + V); row 0 is where the script starts, row t + 1 is what a reset at t draws.
        check: (E, Q) positions before the last step.
        is_step: whether a reset is followed by a step at once (else it takes the place of one).
        observation: (E, O) at the end.
    """
    np.savez(path, actions=actions, resets=resets, states=states, check=check, is_step=is_step, observation=observation)


class Physics:
    """Only ``mj_step``: a plain loop over environments of one shared model, with the actions and resets of a script."""

    def __init__(self, env_id: str, path: Path, rows: slice) -> None:
        single: Any = gymnasium.make(env_id).unwrapped
        self._model, self._frame_skip = single.model, single.frame_skip
        script = np.load(path)
        self._actions, states = script["actions"][:, rows], script["states"][:, rows]
        self.length = len(self._actions)
        self._is_step = bool(script["is_step"])
        self._datas = [mujoco.MjData(self._model) for _ in range(states.shape[1])]
        self._controls = [data.ctrl for data in self._datas]
        self._start = list(states[0])
        resets = script["resets"][:, rows]
        self._resets = [{int(e): states[t + 1, e] for e in np.flatnonzero(now)} for t, now in enumerate(resets)]
        self._play_and_check(script["check"][rows], resets[-1])

    def _play_and_check(self, check: NDArray[np.float64], excepted: NDArray[np.bool_]) -> None:
        self.rewind()
        for t in range(len(self._actions) - 1):
            self.step(t)
        found = np.stack([data.qpos for data in self._datas])
        assert (found == check)[~excepted].all(), "the physics went another way than the script"
        self.rewind()

    def rewind(self) -> None:
        for data, state in zip(self._datas, self._start, strict=True):
            self._reset(data, state)

    def _reset(self, data: Any, state: NDArray[np.float64]) -> None:
        mujoco.mj_resetData(self._model, data)
        data.qpos[:], data.qvel[:] = state[: self._model.nq], state[self._model.nq :]
        mujoco.mj_forward(self._model, data)

    def step(self, t: int) -> None:
        model, frame_skip, resets = self._model, self._frame_skip, self._resets[t]
        mj_step = mujoco.mj_step
        if not resets:
            for control, data, action in zip(self._controls, self._datas, self._actions[t], strict=True):
                control[:] = action
                mj_step(model, data, nstep=frame_skip)
            return
        for index, (control, data, action) in enumerate(
            zip(self._controls, self._datas, self._actions[t], strict=True)
        ):
            if index in resets:
                self._reset(data, resets[index])
                if not self._is_step:
                    continue
            control[:] = action
            mj_step(model, data, nstep=frame_skip)

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Vector:
    """A ``gymnasium.vector.VectorEnv`` (or what looks like one) that is stepped as its users do."""

    def __init__(self, env: Any, actions: NDArray[np.generic], *, takes_seed: bool = True) -> None:
        self._env = env
        self._actions = actions
        self.length = len(actions)
        self._seed = {"seed": SEED} if takes_seed else {}
        self.rewind()

    def rewind(self) -> None:
        self._env.reset(**self._seed)

    def step(self, t: int) -> None:
        self._env.step(self._actions[t])

    def finish(self) -> None: ...

    def close(self) -> None:
        self._env.close()


class Halves:
    """Two of ours of half the size: while the results of one are looked at, the other is being stepped."""

    def __init__(self, env_id: str, actions: NDArray[np.float32], workers: int) -> None:
        half = actions.shape[1] // 2
        self._halves = [make_ours(env_id, half, workers=workers) for _ in range(2)]
        self._actions = (actions[:, :half], actions[:, half:])
        self.length = len(actions)
        self._under_way = False
        self.rewind()

    def rewind(self) -> None:
        for env, seed in zip(self._halves, (SEED, SEED + self._halves[0].num_envs), strict=True):
            env.reset(seed=seed)

    def step(self, t: int) -> None:
        for env, actions in zip(self._halves, self._actions, strict=True):
            if self._under_way:
                env.step_wait()
            env.step_async(actions[t])
        self._under_way = True

    def finish(self) -> None:
        if self._under_way:
            for env in self._halves:
                env.step_wait()
        self._under_way = False

    def close(self) -> None:
        for env in self._halves:
            env.close()


def make_async(env_id: str, num_envs: int) -> gymnasium.vector.AsyncVectorEnv:
    """Return what ``make_vec`` does, of processes that end with this one, also when it is killed."""
    owner = os.getpid()

    def make_one() -> gymnasium.Env[Any, Any]:
        if os.getpid() != owner:
            die_with_parent(owner)
        return gymnasium.make(env_id)

    return gymnasium.vector.AsyncVectorEnv([make_one] * num_envs)


def make_ours(env_id: str, num_envs: int, **options: Any) -> Any:
    """Return a `BridgeVectorEnv`."""
    from env_bridge import BridgeVectorEnv

    return BridgeVectorEnv(env_id, num_envs, **options)


def ours_of_script(env_id: str, num_envs: int, folder: Path, workers: int) -> Vector:
    """Return ours after it went through the script once and ended where Gymnasium did."""
    script = np.load(folder / "steps.npz")
    env = make_ours(env_id, num_envs, workers=workers)
    env.reset(seed=SEED)
    for action in script["actions"]:
        observation = env.step(action)[0]
    assert (observation == script["observation"]).all(), "ours went another way than Gymnasium"
    return Vector(env, script["actions"])


def envpool_stage(env_id: str, num_envs: int, threads: int) -> Vector:
    """Return EnvPool's environments. Raises `PeerMissing`."""
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise PeerMissing(
            f"EnvPool is not installed ({error}), so nothing is compared with it: pip install -e '.[bench]'"
        ) from error
    env = envpool.make_gymnasium(env_id, num_envs=num_envs, num_threads=threads, seed=SEED)
    return Vector(env, script_actions(env_id, num_envs).astype(np.float64), takes_seed=False)


def make_stage(kind: str, env_id: str, num_envs: int, folder: Path, rest: Sequence[str]) -> Callable[[str], Stage]:
    """Return what gives the stage of a script by its name."""
    if kind == "physics":
        part, parts = int(rest[0]), int(rest[1])
        size = num_envs // parts
        rows, kept = slice(part * size, (part + 1) * size), dict[str, Stage]()

        def physics(script: str) -> Stage:
            if script not in kept:
                kept[script] = Physics(env_id, folder / f"{script}.npz", rows)
            return kept[script]

        return physics
    stage: Stage
    match kind:
        case "sync":
            env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync")
            stage = Vector(env, script_actions(env_id, num_envs))
        case "async":
            stage = Vector(make_async(env_id, num_envs), script_actions(env_id, num_envs))
        case "envpool":
            stage = envpool_stage(env_id, num_envs, threads=int(rest[0]))
        case "ours":
            stage = ours_of_script(env_id, num_envs, folder, workers=int(rest[0]))
        case "ours-default":
            stage = Vector(make_ours(env_id, num_envs), script_actions(env_id, num_envs))
        case "halves":
            stage = Halves(env_id, script_actions(env_id, num_envs), workers=int(rest[0]))
        case _:
            raise ValueError(kind)
    return lambda _: stage


class Play:
    """Plays scripts from where they stopped the last time."""

    def __init__(self, stage_of: Callable[[str], Stage], num_envs: int) -> None:
        self._stage_of = stage_of
        self._num_envs = num_envs
        self._at: dict[str, int] = {}

    def __call__(self, seconds: float, script: str) -> tuple[int, float]:
        """Return environment steps made and the seconds they took, at least ``seconds``."""
        stage, at = self._stage_of(script), self._at.get(script, 0)
        steps, taken = 0, 0.0
        while taken < seconds:
            if at == stage.length:
                stage.rewind()
                at = 0
            start = time.perf_counter()
            while at < stage.length and time.perf_counter() - start < seconds - taken:
                stage.step(at)
                at, steps = at + 1, steps + self._num_envs
            stage.finish()
            taken += time.perf_counter() - start
        self._at[script] = at
        return steps, taken


def serve(play: Callable[[float, str], object], say: Callable[[object], None]) -> None:
    """Answer line by line until standard input ends."""
    say("ready")
    for line in sys.stdin:
        seconds, script = line.split()
        say(play(float(seconds), script))


def open_mouth() -> Callable[[object], None]:
    """Return what writes a line of JSON to standard output, where from now on nothing else does."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=out)


def quieten() -> None:
    """End with whoever started us and with nobody else; leave MuJoCo's and Gymnasium's remarks unsaid."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    mujoco.set_mju_user_warning(lambda text: None)


def main(kind: str, env_id: str, size: str, folder: str, *rest: str) -> None:
    """Play, or write the script."""
    say = open_mouth()
    quieten()
    num_envs = int(size)
    if kind == "record":
        record_script(env_id, num_envs, Path(folder) / "steps.npz")
        say("ready")
        return
    try:
        stage_of = make_stage(kind, env_id, num_envs, Path(folder), rest)
    except PeerMissing as missing:
        say({"missing": str(missing)})
        return
    count = num_envs // int(rest[1]) if kind == "physics" else num_envs
    serve(Play(stage_of, count), say)
    if kind != "physics":
        stage_of("").close()


if __name__ == "__main__":
    main(*sys.argv[1:])
