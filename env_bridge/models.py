"""MuJoCo models from files: Gymnasium's own at once, those from outside after a child process has tried them.

A model from outside is compiled by `env_bridge.compiling` under limits, and what that process left is loaded here as a
compiled model (MJB): the same bits as compiling here, but the parser, the mesh decoders and files that change meanwhile
never touch this process. Its sizes are checked here again before anything is allocated.
"""

from __future__ import annotations

import copy
import difflib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import gymnasium
import mujoco
import numpy as np
import structlog
from gymnasium.envs.mujoco import MujocoEnv, mujoco_env
from gymnasium.envs.registration import load_env_creator

from env_bridge.compiling import MIB, ModelLimits, check_sizes
from env_bridge.goals import make_goals
from env_bridge.robots.anatomy import Robot, Transition
from swarm.environment import TaskParameters
from swarm.errors import ConfigError

log = structlog.get_logger(__name__)

HARMLESS: Final = "'settotalmass' is deprecated"  # said of Gymnasium's own half_cheetah.xml at each load
ASSETS: Final = Path(mujoco_env.__file__).resolve().parent / "assets"
MAX_TEXT: Final = 400
"""Characters of the compiler's own words in a message."""


def route_warnings_to_log() -> None:
    """Log MuJoCo's warnings instead of writing MUJOCO_LOG.TXT into the working directory; for processes' mains."""
    mujoco.set_mju_user_warning(_log_warning)


def _log_warning(text: str) -> None:
    if HARMLESS not in text:
        log.warning("mujoco", text=text)


def load_model(xml_file: str, limits: ModelLimits | None = None) -> mujoco.MjModel:
    """Compile a model file: one of Gymnasium's by its name, any other by a path that starts with ``/``, ``.`` or ``~``.

    Blocks; a model from outside takes about half a second more, for its child process.

    Args:
        xml_file: as Gymnasium's environments take it.
        limits: of a model from outside; ``None``: the defaults.

    Raises:
        ConfigError: no such file, or a model that does not compile, is too large, or diverges at once.
    """
    path = find_model(xml_file)
    if not path.is_relative_to(ASSETS):
        return _load_foreign(path, limits or ModelLimits())
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_log_warning)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(before)


def load_robot_model(robot: Robot, limits: ModelLimits | None = None) -> mujoco.MjModel:
    """The model of ``robot``. Raises ``ConfigError`` as `load_model`, or where it has not what the robot reads."""
    model = load_model(robot.xml_file, limits)
    check_model(robot, model)
    return model


def check_model(robot: Robot, model: mujoco.MjModel) -> None:
    """Let ``robot`` live one moment in ``model``: whatever its formulas read must be there.

    Raises:
        ConfigError: the model lacks bodies or joints that they read, or has no actuators.
    """
    what = f"{type(robot).__name__} cannot live in the model {robot.xml_file!r}"
    if model.nu == 0:
        raise ConfigError(f"{what}: it has no actuators; add <actuator> with a control range for each")
    try:
        _live(robot, model)
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{what}: {_shortened(error)}; expected the bodies and joints of Gymnasium's model of this robot "
            f"(this one has {model.nbody} bodies and {model.nq} positions)"
        ) from error


def _shortened(error: Exception) -> str:
    reason = " ".join(str(error).split()).strip("\"'")
    return reason if len(reason) <= MAX_TEXT else f"{reason[:MAX_TEXT]}…"


def _live(robot: Robot, model: mujoco.MjModel) -> None:
    """Draw a state, observe it and judge a step that leads to it."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = robot.draw_state(np.random.default_rng(0), data.qpos.copy(), data.qvel.copy())
    mujoco.mj_forward(model, data)
    fields = {name: np.array(read(model, data), np.float64)[None] for name, read in robot.views().items()}
    fields |= {name: np.array(read(model), np.float64)[None] for name, read in robot.constants().items()}
    transition = Transition(
        fields=fields,
        position=robot.locate(fields),
        velocity=np.zeros((1, 2)),
        action=np.zeros((1, model.nu), np.float32),
        goals=make_goals([TaskParameters()], planar=robot.planar),
    )
    robot.observe(fields)
    robot.info(transition, robot.judge(transition))
    robot.reset_info(fields)


def make_environments(env_id: str, num_envs: int, options: Mapping[str, Any]) -> list[gymnasium.Env[Any, Any]]:
    """Gymnasium's environments of ``env_id``, without their time limit; models from outside come by `load_model`.

    Args:
        env_id: of a registered environment.
        num_envs: how many.
        options: of the constructor of its class.

    Raises:
        ConfigError: as `load_model`, or the class cannot live in a model from outside.
    """
    spec = gymnasium.spec(env_id)
    given = {"disable_env_checker": True, "max_episode_steps": -1, **options}
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    xml_file = {**spec.kwargs, **options}.get("xml_file")
    if xml_file is None or not (isinstance(creator, type) and issubclass(creator, MujocoEnv)):
        return [gymnasium.make(env_id, **given) for _ in range(num_envs)]
    if not isinstance(xml_file, str):
        raise ConfigError(f"{env_id}: got xml_file={xml_file!r}; expected the path of a model file, as text")
    if find_model(xml_file).is_relative_to(ASSETS):
        return [gymnasium.make(env_id, **given) for _ in range(num_envs)]
    loaded = copy.copy(spec)
    loaded.entry_point = _with_model(creator, load_model(xml_file))
    try:
        _live_one_step(gymnasium.make(loaded, **given))
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise ConfigError(f"{env_id} cannot live in the model {xml_file!r}: {_shortened(error)}") from error
    return [gymnasium.make(loaded, **given) for _ in range(num_envs)]


def _with_model(creator: Any, model: mujoco.MjModel) -> Any:  # noqa: ANN401 - a class, as Gymnasium's registry wants it
    """A subclass of ``creator``, a `MujocoEnv`, that takes ``model`` instead of compiling its file."""

    def initialize(env: MujocoEnv) -> tuple[mujoco.MjModel, mujoco.MjData]:
        own = copy.copy(model)
        own.vis.global_.offwidth = max(own.vis.global_.offwidth, env.width)  # as `MujocoEnv` does
        own.vis.global_.offheight = max(own.vis.global_.offheight, env.height)
        return own, mujoco.MjData(own)

    return type(creator.__name__, (creator,), {"_initialize_simulation": initialize})


def _live_one_step(env: gymnasium.Env[Any, Any]) -> None:
    env.reset(seed=0)
    assert env.action_space.shape is not None, "MuJoCo's are boxes"
    env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    env.close()


def find_model(xml_file: str) -> Path:
    """The absolute path of a model file. Raises ``ConfigError`` where there is none."""
    own = not xml_file.startswith((".", "/", "~"))
    path = ASSETS / xml_file if own else Path(xml_file).expanduser()
    if "\0" in xml_file or not path.is_file():
        names = sorted(file.name for file in ASSETS.glob("*.xml"))
        nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)[0]
        where = f"Gymnasium has no model {xml_file!r}" if own else f"model file {xml_file!r} is not there, or no file"
        raise ConfigError(
            f"{where}; write a path that starts with / or ., or the name of one of Gymnasium's: {nearest}"
        )
    return path.resolve()


def _load_foreign(path: Path, limits: ModelLimits) -> mujoco.MjModel:
    size = path.stat().st_size
    if size > limits.source_bytes:
        got, most = size / MIB, limits.source_bytes // MIB
        raise ConfigError(f"model file {str(path)!r} has {got:.0f} MiB, expected at most {most}; is it a model?")
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        compiled = Path(folder) / "model.mjb"
        reason = _compile(path, compiled, limits)
        if reason is None:
            try:
                model = mujoco.MjModel.from_binary_path(str(compiled))
                check_sizes(model, limits)
                return model
            except (ConfigError, ValueError) as error:
                reason = str(error)
    raise ConfigError(f"model file {str(path)!r} {reason}")


def _compile(path: Path, compiled: Path, limits: ModelLimits) -> str | None:
    """Run the child in the temporary folder of ``compiled``; ``None`` if all went well, else what it met."""
    command = [sys.executable, "-m", "env_bridge.compiling", "--parent", str(os.getpid())]
    command += ["--input", str(path), "--output", str(compiled)]
    for name, value in asdict(limits).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    # Threads' stacks cost memory; nothing is drawn.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MUJOCO_GL": "disabled"}
    errors = compiled.with_name("errors.txt")
    try:
        with errors.open("wb") as stderr:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=compiled.parent,
                env=environment,
                timeout=limits.wall_s,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return f"did not compile within {limits.wall_s} s; are its files on a file system that answers?"
    return explain(done.returncode, errors.read_bytes()[: 1 << 16].decode("utf-8", "replace"), limits)


def explain(code: int, text: str, limits: ModelLimits) -> str | None:
    """What the exit code and the error output of a compiling process mean, in words; ``None``: all went well."""
    if code == 0:
        return None
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    if code == 2 and lines:
        return lines[-1] if len(lines[-1]) <= MAX_TEXT else f"{lines[-1][:MAX_TEXT]}…"
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            f"took more than {limits.cpu_s} s of processor time or the machine's memory to compile and to take its "
            "first steps; lower its sizes and repetitions"
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ended the compiling process with {how}; find the part that breaks MuJoCo's compiler, or change its version"
