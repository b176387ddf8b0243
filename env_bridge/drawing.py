"""Drawing in the child process of `env_bridge.render`: MuJoCo's renderer, a tracking camera, markers of goals.

Letters: T steps, Q generalised positions, E environments, H and W pixels.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from env_bridge.clips import ADVICE, CLIPS, Clip, Positions, VideoOptions
from env_bridge.models import load_model, route_warnings_to_log
from env_bridge.pictures import Frame, Panel, open_picture
from swarm.errors import ConfigError

TRACKED_BODY: Final = 1  # the torso, in all of Gymnasium's robots
SMOOTH_FPS: Final = 25.0
CAMERA: Final = (4.0, 90.0, -15.0)
"""Distance in metres, azimuth and elevation in degrees: the robot walks from left to right."""
MARK: Final = np.array([1.0, 0.45, 0.1, 0.9], np.float32)
ARROW_M: Final = (0.05, 2.4)
POST_M: Final = (0.04, 0.4)
POST_BEYOND_M: Final = 0.8
DISC_M: Final = (0.4, 0.01)
"""Radius and length of the arrow; radius and half the height of post and disc."""


def try_frame(env_id: str) -> None:
    """Draw one small frame of ``env_id``. Raises ``ConfigError`` with advice where that is not possible."""
    route_warnings_to_log()
    model, _ = find_body(env_id)
    clip = Clip(episodes=[model.qpos0[None]], env_id=env_id)
    stage = Stage(clip, VideoOptions(width=64, height=48))
    try:
        image = stage.draw(0, 0)
    finally:
        stage.close()
    if image.min() == image.max():
        raise ConfigError(f"rendering gave an empty picture; {ADVICE}")


def draw(
    clips: Sequence[Clip], targets: Sequence[Path], options: VideoOptions, on_frame: Callable[[int, int], None]
) -> None:
    """Draw ``clips`` side by side into all ``targets``, which appear together, when all are complete.

    Raises:
        ConfigError: an input that does not fit, a file that cannot be written, or no GL.
    """
    route_warnings_to_log()
    with contextlib.ExitStack() as stack:
        stages = []
        for clip in clips:
            stages.append(Stage(clip, options))
            stack.callback(stages[-1].close)
        steps_s = {stage.timestep_s for stage in stages}
        if len(steps_s) > 1:
            names = ", ".join(clip.env_id for clip in clips)
            raise ConfigError(f"{names} have steps of different length and cannot play side by side; film them apart")
        every = options.every or max(1, round(1.0 / (SMOOTH_FPS * stages[0].timestep_s)))
        fps = options.fps or 1.0 / (stages[0].timestep_s * every)
        pictures = [stack.enter_context(open_picture(target, fps, options)) for target in targets]
        max_frames = max(1, math.ceil(options.seconds / (stages[0].timestep_s * every) - 1e-6))
        for frame in _frames(stages, every, max_frames):
            for picture in pictures:
                picture.add(frame)
            on_frame(frame.number, frame.in_all)
        for picture in pictures:
            picture.finish()
        for picture in pictures:
            picture.publish()


def _frames(stages: Sequence[Stage], every: int, max_frames: int) -> Iterator[Frame]:
    """Yield the frames; a stage that is through holds its last picture."""
    chosen = [choose_steps([len(episode) for episode in stage.clip.episodes], every, max_frames) for stage in stages]
    in_all = max(len(steps) for steps in chosen)
    several = any(episode > 0 for steps in chosen for episode, _ in steps)
    held: list[Panel] = []
    for number in range(in_all):
        panels = []
        for index, (stage, steps) in enumerate(zip(stages, chosen, strict=True)):
            if number < len(steps):
                panels.append(stage.panel(*steps[number], several=several))
            else:
                panels.append(held[index].ended())
        held = panels
        yield Frame(panels=tuple(panels), number=number + 1, in_all=in_all)


def choose_steps(lengths: Sequence[int], every: int, max_frames: int) -> list[tuple[int, int]]:
    """Pairs (episode, step) of the frames to draw, at most ``max_frames``, in order."""
    chosen = [(episode, step) for episode, length in enumerate(lengths) for step in range(0, length, every)]
    return chosen[:max_frames]


def load_clips(path: Path, env_id: str) -> list[Clip]:
    """The clips of a file that `render_video` wrote, or of ``env_id`` the ``qpos`` (T, Q) or (T, E, Q) of a rollout.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            described = json.loads((file.metadata() or {}).get(CLIPS, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"positions {str(path)!r} cannot be read: {error}") from error
    if described is not None:
        return [_clip(number, clip, arrays) for number, clip in enumerate(described)]
    if "qpos" not in arrays:
        raise ConfigError(f"positions {str(path)!r}: no array 'qpos'; record a rollout with record_qpos=True")
    qpos = arrays["qpos"]
    return [Clip(episodes=list(qpos.swapaxes(0, 1)) if qpos.ndim == 3 else [qpos], env_id=env_id)]


def _clip(number: int, described: dict[str, object], arrays: dict[str, Positions]) -> Clip:
    count = described.pop("num_episodes")
    assert isinstance(count, int), "written by render_video"
    return Clip(episodes=[arrays[f"{number:02d}/{index:06d}"] for index in range(count)], **described)  # type: ignore[arg-type]


def find_body(env_id: str) -> tuple[mujoco.MjModel, float]:
    """The model of ``env_id``, and the seconds of one of its steps.

    Raises:
        ConfigError: no such environment, or one without a MuJoCo model.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # version 4 is said to be out of date
            env = gymnasium.make(env_id).unwrapped
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"Gymnasium cannot make {env_id}: {error}") from error
    if not isinstance(env, MujocoEnv):
        raise ConfigError(f"{env_id} has no MuJoCo model, so that there is nothing to draw")
    return env.model, float(env.dt)


class Stage:
    """A clip's model, camera and renderer."""

    def __init__(self, clip: Clip, options: VideoOptions) -> None:
        """Open a renderer. Raises ``ConfigError``: no GL, an unknown environment, or positions that do not fit."""
        self.clip = clip
        self._model, self.timestep_s = find_body(clip.env_id)
        if clip.xml_file is not None:
            frame_skip = self.timestep_s / self._model.opt.timestep
            self._model = load_model(clip.xml_file)
            self.timestep_s = float(frame_skip * self._model.opt.timestep)
        check_positions(clip, self._model.nq)
        self._data = mujoco.MjData(self._model)
        self._start = (0.0, 0.0)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        self._camera.trackbodyid = min(TRACKED_BODY, self._model.nbody - 1)
        self._camera.distance, self._camera.azimuth, self._camera.elevation = CAMERA
        self._renderer = open_renderer(self._model, options.height, options.width)
        # In software, shadows cost two thirds of a picture and leave black patches at the horizon; reflections stay.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False

    def panel(self, episode: int, step: int, *, several: bool) -> Panel:
        """The picture of one step, with its label, its time and, among several, the episode's number."""
        time = f"{step * self.timestep_s:.2f} s"
        note = f"{time}, episode {episode + 1}" if several else time
        return Panel(image=self.draw(episode, step), label=self.clip.label, note=note)

    def draw(self, episode: int, step: int) -> NDArray[np.uint8]:
        """Return the image (H, W, 3) of one step; steps of an episode come in order."""
        self._data.qpos[:] = self.clip.episodes[episode][step]
        mujoco.mj_forward(self._model, self._data)
        place = self._data.xpos[self._camera.trackbodyid]
        if step == 0:
            self._start = (float(place[0]), float(place[1]))
        self._renderer.update_scene(self._data, self._camera)
        self._mark(place, step * self.timestep_s)
        image: NDArray[np.uint8] = self._renderer.render()
        return image

    def _mark(self, place: NDArray[np.float64], time_s: float) -> None:
        """Add what the robot shall do to the scene."""
        clip, heading = self.clip, self.clip.heading or 0.0
        along = np.array([math.cos(heading), math.sin(heading), 0.0])
        if clip.heading is not None:
            foot = np.array([place[0], place[1], 0.03])
            arrow = self._geom(mujoco.mjtGeom.mjGEOM_ARROW, (0.0, 0.0, 0.0), foot)
            mujoco.mjv_connector(arrow, mujoco.mjtGeom.mjGEOM_ARROW, ARROW_M[0], foot, foot + ARROW_M[1] * along)
        if clip.velocity is not None:
            beyond = POST_BEYOND_M * np.array([-along[1], along[0], 0.0])
            post = np.array([*self._start, POST_M[1]]) + clip.velocity * time_s * along + beyond
            self._geom(mujoco.mjtGeom.mjGEOM_CYLINDER, (*POST_M, 0.0), post)
        if clip.goal is not None:
            self._geom(mujoco.mjtGeom.mjGEOM_CYLINDER, (*DISC_M, 0.0), np.array([*clip.goal, DISC_M[1]]))

    def _geom(
        self, kind: mujoco.mjtGeom, size: tuple[float, float, float], place: NDArray[np.float64]
    ) -> mujoco.MjvGeom:
        scene = self._renderer.scene
        assert scene.ngeom < scene.maxgeom, "the renderer keeps room for ten thousand"
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(geom, kind, np.array(size), place, np.eye(3).ravel(), MARK)
        scene.ngeom += 1
        return geom

    def close(self) -> None:
        """Release the GL context."""
        self._renderer.close()


def check_positions(clip: Clip, num_positions: int) -> None:
    """Raise ``ConfigError`` for episodes that are not positions of the robot."""
    for number, episode in enumerate(clip.episodes):
        if episode.ndim != 2 or episode.shape[1] != num_positions or not np.issubdtype(episode.dtype, np.floating):
            got = f"{episode.dtype} {episode.shape}"
            raise ConfigError(
                f"positions of episode {number}: got {got}, expected floats (T, {num_positions}) for {clip.env_id}"
            )
        if not np.isfinite(episode).all():
            raise ConfigError(f"positions of episode {number} are not finite: the simulation diverged there")
    clip.check()


def open_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """An off-screen renderer. Raises ``ConfigError`` with the advice where GL cannot be used."""
    backend = os.environ.get("MUJOCO_GL", "")
    if backend == "osmesa" and ctypes.util.find_library("OSMesa") is None:
        raise ConfigError(f"rendering without a screen needs OSMesa, which is not installed; {ADVICE}")
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # GL backends raise whatever they like; each means that nothing can be drawn here
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"rendering with MUJOCO_GL={backend or '(unset)'} failed ({reason}); {ADVICE}") from error
