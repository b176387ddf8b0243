"""Drawing in the child process of `env_bridge.render`: MuJoCo's renderer, a tracking camera, an MP4 writer.

Letters: T steps, Q generalised positions, E environments, H and W pixels.
"""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import imageio
import mujoco
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from env_bridge.dynamics import route_warnings_to_log
from env_bridge.physics import Simulation
from env_bridge.render import ADVICE, Positions, VideoOptions
from env_bridge.vector_env import make_simulation
from swarm.errors import ConfigError

TRACKED_BODY: Final = 1  # the torso, in all of Gymnasium's robots


def try_frame(env_id: str) -> None:
    """Draw one small frame of ``env_id``. Raises ``ConfigError`` with advice where that is not possible."""
    options = VideoOptions(width=64, height=48)
    simulation = make_simulation(env_id, 1, 1)
    _, _, image = next(draw_frames(simulation, [simulation.qpos()], options))
    if image.min() == image.max():
        raise ConfigError(f"rendering gave an empty picture; {ADVICE}")


def write_video(
    env_id: str, source: Path, target: Path, options: VideoOptions, on_frame: Callable[[int, int], None]
) -> None:
    """Draw the positions of ``source`` into the MP4 ``target``, which appears only when it is complete.

    Raises:
        ConfigError: an input that does not fit, a folder that is not there, or no GL.
    """
    route_warnings_to_log()
    if target.suffix != ".mp4" or not target.parent.is_dir():
        raise ConfigError(f"video {str(target)!r}: expected a file name ending in .mp4 in a folder that exists")
    simulation = make_simulation(env_id, 1, 1)
    episodes = load_positions(source, simulation.qpos().shape[1], env_id)
    fps = options.fps or 1.0 / (simulation.timestep_s * options.every)
    unfinished = target.with_name(f".{target.stem}.unfinished.mp4")
    try:
        with imageio.get_writer(unfinished, fps=fps, codec="libx264", quality=7, macro_block_size=2) as writer:
            for drawn, in_all, image in draw_frames(simulation, episodes, options):
                writer.append_data(image)  # type: ignore[attr-defined]  # imageio declares the base class only
                on_frame(drawn, in_all)
        unfinished.replace(target)
    except OSError as error:
        raise ConfigError(f"video {str(target)!r} cannot be written: {error}".splitlines()[0]) from error
    finally:
        unfinished.unlink(missing_ok=True)


def choose_steps(lengths: Sequence[int], options: VideoOptions) -> list[tuple[int, int]]:
    """Pairs (episode, step) of the frames to draw, at most ``max_frames``, in order."""
    chosen = [(episode, step) for episode, length in enumerate(lengths) for step in range(0, length, options.every)]
    return chosen[: options.max_frames]


def load_positions(path: Path, num_positions: int, env_id: str) -> list[Positions]:
    """Episodes of a file that `render_video` wrote, or the ``qpos`` (T, Q) or (T, E, Q) of a stored rollout.

    Raises:
        ConfigError: the file is missing or damaged, or the positions belong to another robot.
    """
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"positions {str(path)!r} cannot be read: {error}".splitlines()[0]) from error
    if "qpos" in arrays and arrays["qpos"].ndim == 3:
        episodes = list(arrays["qpos"].swapaxes(0, 1))
    else:
        episodes = [arrays[name] for name in (["qpos"] if "qpos" in arrays else sorted(arrays))]
    for number, episode in enumerate(episodes):
        if episode.ndim != 2 or episode.shape[1] != num_positions or not np.issubdtype(episode.dtype, np.floating):
            got = f"{episode.dtype} {episode.shape}"
            raise ConfigError(
                f"positions of episode {number}: got {got}, expected floats (T, {num_positions}) for {env_id}"
            )
        if not np.isfinite(episode).all():
            raise ConfigError(f"positions of episode {number} are not finite: the simulation diverged there")
    if not sum(len(episode) for episode in episodes):
        raise ConfigError(f"positions {str(path)!r} hold no step to draw")
    return episodes


def draw_frames(
    simulation: Simulation, episodes: Sequence[Positions], options: VideoOptions
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield (frames drawn, frames in all, image (H, W, 3)). Raises ``ConfigError`` where there is no GL."""
    model = simulation.model
    assert model is not None, "positions were read from it"
    data = mujoco.MjData(model)
    renderer = open_renderer(model, options.height, options.width)
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    camera.trackbodyid = TRACKED_BODY
    camera.distance, camera.azimuth, camera.elevation = 4.0, 90.0, -15.0
    frames = choose_steps([len(episode) for episode in episodes], options)
    try:
        for number, (episode, step) in enumerate(frames, start=1):
            data.qpos[:] = episodes[episode][step]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            yield number, len(frames), renderer.render()
    finally:
        renderer.close()


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
