"""Film a policy: what a run trained, as of any kept round, an adapted one, or an exported file; alone or two of them.

A film is a rollout with recorded positions, as for an evaluation, and then a drawing (`env_bridge.render_video`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.deployment import FOLDER, adapted_path
from agents.records import deployed_member, newest_checkpoint
from agents.rollouts import POLICY
from env_bridge.clips import Clip, VideoOptions
from env_bridge.render import check_paths, render_video
from env_bridge.tasks import check_task_fits, combine, goal_position, task_from_json, task_to_json
from scenarios.adapting import adapted_request
from scenarios.run_directory import CHECKPOINT_NAME, RunDirectory
from scenarios.wiring import bridge_alone
from swarm.checkpoint import CheckpointStore, Manifest
from swarm.environment import Bridge, EnvironmentSpec, RolloutRequest, RolloutResult, TaskParameters
from swarm.errors import CheckpointError, ConfigError
from swarm.policy import BLOCK_SIZE

POLICY_SUFFIX: Final = ".safetensors"
DEFAULT_WORKERS: Final = 2
"""Stepping workers of the bridge for a policy file, which belongs to no run. They change no bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A policy on disk.

    Attributes:
        path: as the user named it.
        run_dir: its run; ``None`` for an exported policy file.
        round_index: a kept round of the run; ``None``: the newest valid one.
        member: whose policy of that round; ``None``: the one that the run reported, or the best so far.
        adapted: name of an adapted policy of the run, instead of a member's.
    """

    path: Path
    run_dir: Path | None = None
    round_index: int | None = None
    member: str | None = None
    adapted: str | None = None


def find_source(
    path: Path, *, round_index: int | None = None, member: str | None = None, adapted: str | None = None
) -> Source:
    """Say what ``path`` is: a run directory, a checkpoint in one, a file in its ``adapted``, or an exported policy.

    Raises:
        CheckpointError: a run directory that is not there or has nothing committed.
        ConfigError: options that do not fit what ``path`` is.
    """
    chosen = [
        name for name, value in (("round", round_index), ("member", member), ("adapted", adapted)) if value is not None
    ]
    if adapted is not None and len(chosen) > 1:
        raise ConfigError(f"got --adapted and --{chosen[0]}; an adapted policy has both of its own")
    parent = path.parent.resolve()
    if path.suffix == POLICY_SUFFIX:
        if chosen:
            raise ConfigError(f"{path} is one policy; --{chosen[0]} belongs to a run directory")
        if parent.name == FOLDER and (parent.parent / "scenario.toml").is_file():
            return find_source(path.parent.parent, adapted=path.stem)
        return Source(path=path)
    found = CHECKPOINT_NAME.fullmatch(path.resolve().name)
    if found and parent.name == "checkpoints":
        if round_index not in (None, int(found[1])):
            raise ConfigError(f"{path} is round {int(found[1])}, got --round {round_index}; leave one of them out")
        return find_source(path.resolve().parent.parent, round_index=int(found[1]), member=member, adapted=adapted)
    run = RunDirectory.open(path)
    run.require_checkpoint()
    if adapted is not None:
        adapted_path(path, adapted)
    return Source(path=path, run_dir=path, round_index=round_index, member=member, adapted=adapted)


async def film(
    sources: Sequence[Source],
    paths: Sequence[Path],
    *,
    shift: TaskParameters | None = None,
    seed: int | None = None,
    options: VideoOptions | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Film one policy, or two side by side that start in the same state of the same task, and return the paths.

    Args:
        sources: which policies; all of them do the task of the first.
        paths: MP4, GIF and PNG files to write, together or not at all.
        shift: what changes against the task of the first policy.
        seed: names the initial states; ``None``: those of the first reported episodes.
        options: sizes and length.
        on_frame: told (frames drawn, frames in all) after each frame; called on another thread.

    Raises:
        CheckpointError: a policy that is missing, damaged or no longer kept.
        ConfigError: a task that the robot cannot do, policies of different robots, or no way to draw here; the text
            says what to do.
    """
    chosen = options or VideoOptions()
    chosen.check()
    check_paths(paths)
    requests = [await asyncio.to_thread(_request, source) for source in sources]
    first = _with_task(requests[0], shift, seed)
    same = [first, *(_like(first, other) for other in requests[1:])]
    clips = []
    with contextlib.ExitStack() as stack:
        folder = sources[0].run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="film-")))
        workers = DEFAULT_WORKERS
        if sources[0].run_dir is not None:
            workers = RunDirectory.open(sources[0].run_dir).scenario().workers
        async with bridge_alone(workers, folder / "logs" / "video.log") as bridge:
            for source, request in zip(sources, same, strict=True):
                clips.append(await _clip(bridge, source, request, chosen.seconds))
    return await asyncio.to_thread(render_video, clips, *paths, options=chosen, on_frame=on_frame)


async def _clip(bridge: Bridge, source: Source, request: RolloutRequest, seconds: float) -> Clip:
    spec: EnvironmentSpec = await bridge.describe(request.env_id)
    if request.num_steps is None:  # a trial of several episodes is played as it is
        limit = request.max_episode_steps or spec.max_episode_steps
        request = replace(request, max_episode_steps=min(limit, max(1, math.ceil(seconds / spec.timestep_s))))
    result = await bridge.rollout(request)
    task = request.tasks[0]
    seen = range(BLOCK_SIZE) if all(other == task for other in request.tasks) else range(1)
    episodes = [episode for environment in seen for episode in episodes_of(result, environment)]
    if not episodes:
        raise ConfigError(f"{source.path}: the simulation diverged at once, so that there is nothing to film")
    return Clip(
        episodes=episodes,
        env_id=request.env_id,
        label=label_of(source, request),
        heading=task.direction,
        velocity=task.velocity,
        goal=goal_position(task),
    )


def episodes_of(result: RolloutResult, environment: int) -> list[NDArray[np.float64]]:
    """Cut the recorded positions of one environment into its episodes, (T, Q) each, without rows that do not count."""
    qpos = np.asarray(result.columns["qpos"][:, environment], np.float64)
    valid, terminated, truncated = (
        np.asarray(result.columns[name][:, environment], np.bool_) for name in ("valid", "terminated", "truncated")
    )
    last = terminated | truncated | ~valid
    cuts = (np.flatnonzero(last) + 1).tolist()
    pieces = zip([0, *cuts], [*cuts, len(qpos)], strict=True)
    episodes = [qpos[start:end][valid[start:end]] for start, end in pieces]
    return [episode for episode in episodes if len(episode)]


def label_of(source: Source, request: RolloutRequest) -> str:
    """What is written above the picture: which policy, and what differs from the plain task."""
    where = source.path.resolve()
    if source.adapted is not None:
        name = f"{where.name}, adapted: {source.adapted}"
    elif source.run_dir is None:
        name = where.stem
    else:
        seats = request.policy_options["seats"]
        assert isinstance(seats, Sequence), "made by video_request"
        name = f"{where.name}, {seats[0]}, round {_manifest(source.run_dir, source.round_index).round_index}"
    changed = ", ".join(f"{key} {_short(value)}" for key, value in task_to_json(request.tasks[0]).items())
    return f"{name} ({changed})" if changed else name


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- requests ---------------------------------------------------------------------------------------------------------


def _request(source: Source) -> RolloutRequest:
    """A block of episodes of the policy with positions, under its own task."""
    if source.run_dir is None:
        return _exported_request(source.path)
    if source.adapted is not None:
        return adapted_request(source.run_dir, source.adapted)
    from agents.pinned import Pinned
    from agents.rollouts import video_request

    manifest = _manifest(source.run_dir, source.round_index)
    team = RunDirectory.open(source.run_dir).scenario().team
    member = source.member or deployed_member(source.run_dir, manifest)
    if member not in team.members:
        raise ConfigError(f"unknown member {member!r}; members of this run: {', '.join(team.members)}")
    return video_request(Pinned(source.run_dir, team, manifest.round_index), member)


def _exported_request(path: Path) -> RolloutRequest:
    from agents.exported import load_policy

    policy = load_policy(path)
    task = task_from_json(policy.card.content["environment"].get("task", {}))
    return RolloutRequest(
        env_id=policy.card.env_id,
        tasks=(task,) * BLOCK_SIZE,
        seed=0,
        num_steps=None,
        policy=POLICY,
        weights=policy.weights,
        record_qpos=True,
    )


def _manifest(run_dir: Path, round_index: int | None) -> Manifest:
    """The round to film, every byte of it checked. Raises ``CheckpointError`` naming the rounds that are kept."""
    if round_index is None:
        return newest_checkpoint(run_dir)
    store = CheckpointStore(run_dir)
    if round_index not in store.rounds():
        kept = ", ".join(map(str, store.rounds()))
        raise CheckpointError(f"{run_dir} has no round {round_index}; rounds that are kept: {kept or 'none'}")
    return store.verify(round_index)


def _with_task(request: RolloutRequest, shift: TaskParameters | None, seed: int | None) -> RolloutRequest:
    changed = request if seed is None else replace(request, seed=seed)
    if shift is None:
        return changed
    task = check_task_fits(combine(request.tasks[0], shift), request.env_id)
    return replace(changed, tasks=(task,) * len(request.tasks))


def _like(first: RolloutRequest, other: RolloutRequest) -> RolloutRequest:
    """``other``'s policy in the situation of ``first``. Raises ``ConfigError`` where that is another robot."""
    if other.env_id.rpartition("-v")[0] != first.env_id.rpartition("-v")[0]:
        raise ConfigError(
            f"got policies of {first.env_id} and {other.env_id} side by side; expected two of the same robot: "
            "make a film of each"
        )
    return replace(
        other,
        tasks=first.tasks,
        seed=first.seed,
        num_steps=first.num_steps,
        max_episode_steps=first.max_episode_steps,
    )
