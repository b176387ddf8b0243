"""Writing a trained policy for use without the swarm: one safetensors file, and a JSON card that says what it is."""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from agents.config import TeamConfig
from agents.exported import FORMAT, FORMAT_VERSION, SUFFIX, ExportedPolicy, PolicyCard
from agents.pinned import Pinned
from agents.records import deployed_member, newest_checkpoint, reported_evaluation
from agents.rollout_policy import build_policy
from swarm.checkpoint import CheckpointStore, Manifest, write_durably
from swarm.environment import EnvironmentSpec, TaskParameters
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Arrays, Json

SCENARIO: Final = "scenario.toml"
FORMATS: Final = {"safetensors": SUFFIX, "pt2": ".pt2", "onnx": ".onnx"}
RECORDED_PACKAGES: Final = ("ssm-swarm", "torch", "numpy", "safetensors", "gymnasium", "mujoco")
USAGE: Final = (
    "import agents",
    'policy = agents.load_policy("{file}")',
    "state = policy.initial_state(num_envs)",
    "action, state = policy.step(observation, state, reward=reward, reset=reset)",
)
USAGE_ELSEWHERE: Final = (
    "inputs: observation (E, O) float32, reward (E,) float32, reset (E,) bool, state (E, S) float32, zeros at first",
    "outputs: action (E, A) within the environment's limits, next_state (E, S)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: the policy's file, its card, and what the card says."""

    path: Path
    card_path: Path
    card: Mapping[str, Any]


def export_policy(
    source: Path | Pinned,
    path: Path,
    *,
    member: str | None = None,
    round_index: int | None = None,
    form: str = "safetensors",
) -> Exported:
    """Write one member's policy to ``path`` and its card beside it: ``.json`` in place of ``.safetensors``, or added.

    Args:
        source: a run directory, or a committed round of one.
        path: where to; its suffix is that of ``form``.
        member: whose policy; by default the member whose episodes the run reported, or else the best so far.
        round_index: a committed round that is still kept; by default the newest valid one.
        form: ``safetensors`` for `agents.load_policy`; ``pt2`` (``torch.export``) or ``onnx`` for other programs.

    Raises:
        CheckpointError: the run directory is damaged, or the round is not kept.
        ConfigError: an unknown member or form, another suffix, a missing package, or ``path`` cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    if path.suffix != FORMATS[form]:
        raise ConfigError(f"got the file name {path.name!r}, expected one that ends in {FORMATS[form]!r}")
    pinned, manifest = _opened(source, round_index)
    chosen = member or deployed_member(pinned.run_dir, manifest)
    if chosen not in pinned.team.members:
        raise ConfigError(f"unknown member {chosen!r}; members of this run: {', '.join(pinned.team.members)}")
    weights = pinned.deployed_weights(chosen)
    card = describe(pinned, manifest, chosen, weights)
    try:
        return write_policy(path, weights, card, form=form)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; name a writable place") from error


def write_policy(path: Path, weights: Arrays, card: Mapping[str, Json], *, form: str = "safetensors") -> Exported:
    """Write ``weights`` and ``card``, which is completed with what the written file is.

    Raises:
        ConfigError: weights and card are not of one policy, or the form cannot be written.
        OSError: the disk.
    """
    data = save({name: np.ascontiguousarray(value) for name, value in weights.items()})
    full = _with_file(card, path, data, form)
    policy = ExportedPolicy(weights, PolicyCard.from_json(full))
    if form == "safetensors":
        write_durably(path, data)
    else:
        difference = policy.export_onnx(path) if form == "onnx" else policy.export_pt2(path)
        full = {**_with_file(card, path, path.read_bytes(), form), "largest_difference": difference}
    card_path = path.with_suffix(".json") if form == "safetensors" else path.with_name(f"{path.name}.json")
    write_durably(card_path, (json.dumps(full, indent=1) + "\n").encode())
    return Exported(path=path, card_path=card_path, card=full)


def describe(
    pinned: Pinned, manifest: Manifest, member: str, weights: Mapping[str, NDArray[np.float32]]
) -> dict[str, Json]:
    """Return the card of a member's policy, but for what `write_policy` knows of the file."""
    store, team = CheckpointStore(pinned.run_dir), pinned.team
    state = store.load_ledger(manifest)
    spec = _spec(cast(Mapping[str, Json], state["environment"]))
    ledger = cast(Mapping[str, Json], state["ledger"])
    nominal = asdict(TaskParameters())
    suite = _scenario_of(pinned.run_dir).get("suite", "")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "environment": {
            "id": spec.env_id,
            "task": {name: value for name, value in asdict(team.task).items() if value != nominal[name]},
            "observation_size": spec.observation_size,
            "action_size": spec.action_size,
            "action_low": list(spec.action_low),
            "action_high": list(spec.action_high),
            "suite": suite,
            "max_episode_steps": team.trials.episode_steps if suite else spec.max_episode_steps,
            "timestep_s": spec.timestep_s,
        },
        "policy": {
            "member": member,
            "encoder": team.member.encoder,
            "remembers": _memory(pinned),
            "state_size": build_policy(weights, {}).state_size,
            "parameters": sum(v.size for name, v in weights.items() if name.startswith(("enc.", "actor."))),
        },
        "training": {
            "round": manifest.round_index,
            "env_steps": ledger["env_steps"],
            "updates": ledger["updates"],
            "seed": team.seed,
            "mode": team.mode,
            "members": list(team.members),
            "versions": _versions_of(pinned.run_dir),
        },
        "evaluation": _evaluation(pinned.run_dir, manifest, member, ledger),
        "exported_with": {"python": platform.python_version()}
        | {name: found for name in RECORDED_PACKAGES if (found := _version(name)) is not None},
        "licence": metadata("ssm-swarm")["License-Expression"],
    }


def load_team(run_dir: Path) -> TeamConfig:
    """Return the team that a run directory's scenario names. Raises ``CheckpointError``."""
    try:
        return TeamConfig.from_json(_scenario_of(run_dir)["team"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{run_dir / SCENARIO} cannot be used: {error}") from error


def _scenario_of(run_dir: Path) -> dict[str, Any]:
    path = run_dir / SCENARIO
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{run_dir} is not a run directory: {path.name}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def _memory(pinned: Pinned) -> str:
    """How long the policy remembers: in a run on a suite of tasks, over the episodes of a trial."""
    if _scenario_of(pinned.run_dir).get("suite"):
        return f"a trial of {pinned.team.trials.episodes} episodes"
    return "an episode"


def _opened(source: Path | Pinned, round_index: int | None) -> tuple[Pinned, Manifest]:
    if isinstance(source, Pinned):
        if round_index not in (None, source.base):
            raise ConfigError(f"got round {round_index} and a pinned round {source.base}; leave the first out")
        return source, CheckpointStore(source.run_dir).verify(source.base)
    team = replace(load_team(source), reproducible=False)  # nothing computed here depends on the number of threads
    store = CheckpointStore(source)
    if round_index is None:
        manifest = newest_checkpoint(source)
    elif round_index in store.rounds():
        manifest = store.verify(round_index)
    else:
        kept = ", ".join(map(str, store.rounds())) or "none"
        raise CheckpointError(f"{source} has no round {round_index}; rounds that are kept: {kept}")
    return Pinned(source, team, manifest.round_index), manifest


def _spec(found: Mapping[str, Json]) -> EnvironmentSpec:
    """Read sizes and limits; runs of version 0.1.0 recorded one limit for all actions."""
    size = cast(int, found["action_size"])
    limits = {
        key: tuple(value) if isinstance(value, list) else (cast(float, value),) * size
        for key, value in found.items()
        if key in ("action_low", "action_high")
    }
    return EnvironmentSpec(**{**found, **limits})  # type: ignore[arg-type]  # as `asdict` wrote it


def _evaluation(run_dir: Path, manifest: Manifest, member: str, ledger: Mapping[str, Json]) -> dict[str, Json] | None:
    """Return how the member did: in the reported episodes, or else in its newest selection episodes; or nothing."""
    reported = reported_evaluation(run_dir, manifest.round_index)
    if reported is not None and reported["member"] == member:
        returns = cast(list[float], reported["returns"])
        return {
            "episodes": "reported",
            "round": manifest.round_index,
            "mean_return": float(np.mean(returns)),
            "num_episodes": len(returns),
            **{key: reported[key] for key in ("returns", "distances", "lengths")},
        }
    standing = cast(Mapping[str, Mapping[str, float]], ledger["standings"]).get(member)
    if standing is None:
        return None
    return {
        "episodes": "selection",
        "round": int(standing["round_index"]),
        "mean_return": standing["mean_return"],
        "distance_m": standing["distance_m"],
    }


def _with_file(card: Mapping[str, Json], path: Path, data: bytes, form: str) -> dict[str, Json]:
    usage = USAGE if form == "safetensors" else USAGE_ELSEWHERE
    return {
        **card,
        "weights": {
            "file": path.name,
            "form": form,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        },
        "usage": [line.format(file=path.name) for line in usage],
    }


def _versions_of(run_dir: Path) -> Mapping[str, Json] | None:
    """Versions that the run was started with, where it recorded them."""
    path = run_dir / "environment.json"
    try:
        return cast(Mapping[str, Json], json.loads(path.read_text(encoding="utf-8"))["versions"])
    except FileNotFoundError:  # an embedded swarm records none
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it to export without") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
