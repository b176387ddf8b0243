"""A policy as it is deployed: who acts, how, with which memory; and its file. No torch.

Letters: E environments (one block), S policy state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agents.config import TeamConfig
from agents.dynamics_heads import Lookahead
from agents.randomness import stream_key
from agents.rollout_policy import prefixed
from agents.rollouts import POLICY
from swarm.checkpoint import write_durably
from swarm.environment import RolloutRequest, TaskParameters
from swarm.errors import CheckpointError, ConfigError
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE

ONLINE_POLICY: Final = "online"
FOLDER: Final = "adapted"
FORMAT: Final = "adapted-policy-1"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MEMORY: Final = "memory"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """One member's policy.

    Attributes:
        member: whose weights.
        encoder: name of the world model whose encoder the weights hold; memories of another one mean nothing to it.
        weights: acting weights, with ``world.*`` and ``critic.*`` where it looks ahead.
        lookahead: how; ``None``: the actor acts alone.
        carry: whether its memory lasts over episodes.
        memory: (E, S) the memory to start from; ``None``: an empty one.
    """

    member: str
    encoder: str
    weights: Arrays
    lookahead: Lookahead | None = None
    carry: bool = False
    memory: NDArray[np.float32] | None = None


def block_request(
    team: TeamConfig, seats: Sequence[Deployment], task: TaskParameters, seed: int, *, max_steps: int | None
) -> RolloutRequest:
    """Return one deterministic episode of each of the seated deployments under ``task``.

    Memories are given by the caller (``policy_state`` and ``carry_state``), since seats may change between episodes.

    Raises:
        ConfigError: seats that look ahead in different ways.
    """
    distinct = {id(seat): seat for seat in seats}
    names = {key: f"seat-{number}" for number, key in enumerate(distinct)}
    weights: dict[str, NDArray[np.generic]] = {}
    for key, seat in distinct.items():
        weights |= prefixed(seat.weights, names[key])
    ways = {seat.lookahead for seat in seats} - {None}
    if len(ways) > 1:
        raise ConfigError(f"got {len(ways)} ways to look ahead on one block, expected one")
    options: dict[str, Json] = {"seats": [names[id(seat)] for seat in seats]}
    way = next(iter(ways), None)
    if way is not None:
        options["lookahead"] = asdict(way)
    return RolloutRequest(
        env_id=team.env_id,
        tasks=(task,) * BLOCK_SIZE,
        seed=seed,
        num_steps=None,
        policy=POLICY if way is None else ONLINE_POLICY,
        policy_options=options,
        weights=weights,
        max_episode_steps=max_steps,
    )


def deployed_blocks(
    team: TeamConfig, deployment: Deployment, task: TaskParameters, episodes: int, seed: int, *, max_steps: int | None
) -> list[RolloutRequest]:
    """Return blocks for ``episodes`` episodes of a deployment, all of them with the memory that it starts from."""
    return [
        replace(
            block_request(
                team,
                (deployment,) * BLOCK_SIZE,
                task,
                stream_key(seed, "deployed", block),
                max_steps=max_steps,
            ),
            carry_state=deployment.carry,
            policy_state=deployment.memory if deployment.carry else None,
        )
        for block in range(-(-episodes // BLOCK_SIZE))
    ]


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedPolicy:
    """An adapted policy as it was saved.

    Attributes:
        task: what it adapted to.
        env_id: the environment.
        round_index: version of the weights that it started from.
        level: how far the adaptation went.
    """

    deployment: Deployment
    task: TaskParameters
    env_id: str
    round_index: int
    level: str


def adapted_path(run_dir: Path, name: str) -> Path:
    """Return where the adapted policy ``name`` of a run lies. Raises ``ConfigError`` for what cannot be a name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"got the name {name!r} for an adapted policy; expected 1 to 64 letters, digits, '.', '_' or '-'"
        )
    return run_dir / FOLDER / f"{name}.safetensors"


def save_adapted(run_dir: Path, name: str, policy: AdaptedPolicy) -> Path:
    """Write an adapted policy beside the checkpoints and return its path. Raises ``OSError``."""
    path = adapted_path(run_dir, name)
    path.parent.mkdir(exist_ok=True)
    deployed = policy.deployment
    arrays = {key: np.ascontiguousarray(value) for key, value in prefixed(deployed.weights, "weights").items()}
    if deployed.memory is not None:
        arrays[MEMORY] = deployed.memory
    card = {
        "format": FORMAT,
        "env_id": policy.env_id,
        "round": policy.round_index,
        "level": policy.level,
        "task": asdict(policy.task),
        "member": deployed.member,
        "encoder": deployed.encoder,
        "carry": deployed.carry,
        "lookahead": None if deployed.lookahead is None else asdict(deployed.lookahead),
    }
    write_durably(path, save(arrays, metadata={"card": json.dumps(card)}))
    return path


def load_adapted(run_dir: Path, name: str) -> AdaptedPolicy:
    """Return an adapted policy of a run.

    Raises:
        ConfigError: no such policy; the text names those that there are.
        CheckpointError: its file is damaged.
    """
    path = adapted_path(run_dir, name)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.safetensors"))
        raise ConfigError(
            f"{run_dir} has no adapted policy {name!r}; it has: {', '.join(known) or 'none'}; "
            "make one with: swarm adapt DIR --shift … --save NAME"
        )
    try:
        with safe_open(path, framework="np") as file:
            card = json.loads((file.metadata() or {})["card"])
            arrays: dict[str, NDArray[np.generic]] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, expected {FORMAT!r}")
        return _read_card(card, arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no adapted policy: {error}") from error


def _read_card(card: Mapping[str, Json], arrays: Arrays) -> AdaptedPolicy:
    lookahead = cast(Mapping[str, float] | None, card["lookahead"])
    memory = arrays.get(MEMORY)
    return AdaptedPolicy(
        deployment=Deployment(
            member=str(card["member"]),
            encoder=str(card["encoder"]),
            weights={
                key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")
            },
            lookahead=None if lookahead is None else Lookahead(**lookahead),  # type: ignore[arg-type]  # checked by use
            carry=bool(card["carry"]),
            memory=None if memory is None else np.asarray(memory, np.float32),
        ),
        task=TaskParameters(**cast(Mapping[str, float], card["task"])),  # type: ignore[arg-type]  # checked by use
        env_id=str(card["env_id"]),
        round_index=int(cast(int, card["round"])),
        level=str(card["level"]),
    )
