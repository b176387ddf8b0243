"""What is committed as of one round, ready for computing: members, world models, experience, features.

A `Pinned` never changes: it is a function of the files of one checkpoint and of the committed rows. Everything here
blocks and runs on a node's compute thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from agents.config import TeamConfig
from agents.learning.encoder import Columns, Parameters, Stream, columns_from_arrays, encode_stream
from agents.learning.normalizer import Scales, empty_normalizer, normalizer_from_rows
from agents.learning.replay import Replay, build_replay
from agents.learning.sac import MemberState
from agents.learning.world_state import (
    WorldState,
    encoder_parameters,
    init_world,
    world_from_arrays,
    world_to_arrays,
)
from agents.member import (
    acting_weights,
    encoder_sizes,
    from_arrays,
    init_member,
    is_finite,
    propose_actions,
    to_arrays,
    votes,
)
from agents.plan import NOMINAL, group_of, groups_of
from agents.randomness import stream_key
from agents.rollout_policy import prefixed
from swarm.checkpoint import MANIFEST, CheckpointStore, Manifest
from swarm.environment import EnvironmentSpec
from swarm.errors import CheckpointError, ConfigError
from swarm.experience import ExperienceReader
from swarm.messages import Arrays, Json
from swarm.policy import BLOCK_SIZE

VOTE_STEPS: Final = 16
POOLED_EXPERIENCE: Final = 0.5
KEPT: Final = 4
ENVIRONMENT_FILE: Final = "environment.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """Committed rows of a stream and what an encoder makes of them."""

    columns: Columns
    stream: Stream


@lru_cache(maxsize=KEPT)
def pinned_round(run_dir: Path, team: TeamConfig, base: int) -> Pinned:
    """Return round ``base`` of a run; agents of one process share it, since it never changes."""
    return Pinned(run_dir, team, base)


def check_round(run_dir: Path, team: TeamConfig, base: int) -> None:
    """Read what a run would continue from.

    Raises:
        CheckpointError: a file does not fit the team's settings, or a member is not finite and would never learn again.
    """
    pinned = Pinned(run_dir, replace(team, reproducible=False), base)  # nothing is computed
    for name in team.members:
        if not is_finite(pinned.member(name)):
            raise CheckpointError(
                f"member {name} of round {base} is not finite, and all its updates would be skipped; to resume from "
                f"the round before, delete {CheckpointStore(run_dir).path(base, MANIFEST).parent}"
            )
    for group in groups_of(team):
        pinned.world(group)


def fresh_files(team: TeamConfig, spec: EnvironmentSpec) -> dict[str, bytes]:
    """Return the files of round 0: new-born members and world models, by file name."""
    require_one_thread(team)
    sizes = (spec.observation_size, spec.action_size)
    files = {}
    for name in team.members:
        seed = stream_key(team.seed, 0, "member", name)
        member = init_member(team.member, *sizes, seed=seed, temperature=team.sac.reward_scale)
        files[member_file(name)] = save(to_arrays(member))
    for group, members in groups_of(team).items():
        seed = stream_key(team.seed, 0, "world")
        world = init_world(team.world, team.member, *sizes, seed=seed, heads=len(members))
        files[world_file(group)] = save(world_to_arrays(world))
    return files


def require_one_thread(team: TeamConfig) -> None:
    """Raise ``ConfigError`` where a run that promises the same bits would compute on several threads."""
    threads = torch.get_num_threads()
    if team.reproducible and threads != 1:
        raise ConfigError(
            f"a reproducible run needs one torch thread, this process has {threads}: set OMP_NUM_THREADS=1 before "
            "torch is imported, or give up the same bits with reproducible=false"
        )


def member_file(name: str) -> str:
    """File name of a member's training state."""
    return f"member-{name}.safetensors"


def world_file(group: str) -> str:
    """File name of a group's world model."""
    return f"world-{group}.safetensors"


def good_file(group: str) -> str:
    """File name of the world model that a group falls back on; written when gradients of a newer one are refused."""
    return f"good-{group}.safetensors"


class Pinned:
    """Round ``base`` of a run; parts are loaded when first asked for."""

    def __init__(self, run_dir: Path, team: TeamConfig, base: int) -> None:
        require_one_thread(team)
        self.team = team
        self.base = base
        self._run_dir = run_dir
        self._store = CheckpointStore(run_dir)
        self._manifest: Manifest = self._store.read_manifest(base)
        self.rows: Mapping[str, int] = self._manifest.rows
        state = self._store.load_ledger(self._manifest)
        environment = cast(Mapping[str, int], state["environment"])
        self._ledger = cast(Mapping[str, Json], state["ledger"])
        self.sizes = (environment["observation_size"], environment["action_size"])
        self._members: dict[str, MemberState] = {}
        self._worlds: dict[str, WorldState] = {}
        self._views: dict[tuple[str, str], View] = {}
        self._replays: dict[str, Replay] = {}
        self._scales: dict[str, Scales] = {}

    @property
    def run_dir(self) -> Path:
        """The run directory that this is a round of."""
        return self._run_dir

    def member(self, name: str) -> MemberState:
        """Training state of a member."""
        if name not in self._members:
            arrays = load_file(self._store.path(self.base, member_file(name)))
            self._members[name] = from_arrays(self.team.member, *self.sizes, arrays)
        return self._members[name]

    def world(self, group: str) -> WorldState:
        """World model of a group."""
        if group not in self._worlds:
            self._worlds[group] = self._load_world(group, self.base)
        return self._worlds[group]

    def earlier_world(self, group: str, rounds_ago: int) -> WorldState | None:
        """World model of a group some rounds before this one; ``None`` where that checkpoint is no longer kept."""
        if not self._store.path(self.base - rounds_ago, world_file(group)).exists():
            return None
        return self._load_world(group, self.base - rounds_ago)

    def good_world(self, group: str) -> tuple[WorldState, int] | None:
        """World model that a group falls back on, and its round; ``None`` where no gradient was ever refused."""
        path = self._store.path(self.base, good_file(group))
        if not path.exists():
            return None
        arrays = load_file(path)
        return self._world_of(group, arrays), int(arrays["round"][0])

    def _load_world(self, group: str, round_index: int) -> WorldState:
        return self._world_of(group, load_file(self._store.path(round_index, world_file(group))))

    def _world_of(self, group: str, arrays: Arrays) -> WorldState:
        heads = len(groups_of(self.team)[group])
        return world_from_arrays(self.team.world, self.team.member, *self.sizes, arrays, heads)

    @property
    def newest_rows(self) -> int:
        """Rows (T) that the newest round added to the nominal stream: no pinned gradient has seen them."""
        return min(self.team.rounds.steps // BLOCK_SIZE, self.rows[NOMINAL])

    def encoder(self, group: str) -> Parameters:
        """Weights of a group's encoder."""
        return encoder_parameters(self.world(group))

    def view(self, group: str, stream: str = NOMINAL) -> View:
        """Committed rows of a stream as the group's encoder sees them."""
        if (group, stream) not in self._views:
            columns = columns_from_arrays(self._arrays(stream), self.rows[stream])
            encoded = encode_stream(
                encoder_sizes(self.team.member, *self.sizes), self.encoder(group), columns, self.scales(group)
            )
            self._views[group, stream] = View(columns=columns, stream=encoded)
        return self._views[group, stream]

    def usable(self, group: str) -> NDArray[np.bool_]:
        """Mask (T, E) of the valid nominal rows in which one of the group's members acted: its own experience."""
        usable: NDArray[np.bool_] = self._acted(groups_of(self.team)[group]) & self._nominal["valid"].astype(bool)
        return usable

    def scales(self, group: str) -> Scales:
        """Normalisation by the nominal rows in which the group's members acted."""
        if group not in self._scales:
            self._scales[group] = self._measure_scales(group)
        return self._scales[group]

    def _measure_scales(self, group: str) -> Scales:
        if self.rows[NOMINAL] == 0:
            return empty_normalizer(self.sizes[0]).scales()
        mask = self._acted(groups_of(self.team)[group])
        observation, reward, following = (
            self._nominal[name][mask].astype(np.float32, copy=False)
            for name in ("observation", "reward", "next_observation")
        )
        return normalizer_from_rows(observation, reward, following).scales()

    def votes(self, voter: str, members: Sequence[str]) -> dict[str, float]:
        """Mean value that the voter's critics give to each member's actions on the newest observations."""
        view = self.view(group_of(self.team, voter))
        features = view.stream.features * self.team.member.feature_scale
        inputs = torch.cat([view.stream.visible, features], dim=-1)[-VOTE_STEPS:].flatten(0, 1)
        proposals = torch.stack([propose_actions(self.member(name), inputs) for name in members])
        return dict(zip(members, votes(self.member(voter), inputs, proposals).tolist(), strict=True))

    # --- training -----------------------------------------------------------------------------------------------------

    def replay(self, member: str) -> tuple[Replay, NDArray[np.int64]]:
        """Valid rows that ``member`` learns from, and the indices of those in which it acted itself."""
        group = group_of(self.team, member)
        allowed = self.usable(group).reshape(-1)
        if group not in self._replays:
            view = self.view(group)
            packed = build_replay(
                view.columns,
                view.stream,
                feature_scale=self.team.member.feature_scale,
                reward_scale=self.team.sac.reward_scale,
            )
            self._replays[group] = packed.select(torch.from_numpy(np.flatnonzero(allowed)))
        own = self._acted((member,)).reshape(-1)[allowed]
        return self._replays[group], np.flatnonzero(own)

    def peer_targets(self, member: str) -> torch.Tensor | None:
        """Target critics of the members of the same discount that are about as experienced, in fixed order.

        ``None``: nobody's.

        A critic with far fewer updates only drags the minimum down: on HalfCheetah-v4, pooling with beginners kept a
        lead of four updates a step below 0 at 10 000 steps, where alone it reaches 1 000 to 1 700. A critic that was
        drawn afresh is a beginner's again.
        """
        if self.team.mode == "independent" or self.team.sac.pooled_targets < 2:
            return None
        enough = POOLED_EXPERIENCE * self.member(member).updates_since_reset
        discount = self.team.discount_of(member)
        peers = [
            name
            for name in self.team.members
            if name != member
            and self.team.discount_of(name) == discount
            and self.member(name).updates_since_reset >= enough
        ]
        return torch.cat([self.member(name).targets for name in peers]) if peers else None

    def guide(self, member: str) -> torch.Tensor | None:
        """Actor of the member with the best evaluation so far.

        ``None`` for itself, before any evaluation, and where it was reset since: what was best is no more.
        """
        best = cast(str, self._ledger["best"])
        standing = cast(Mapping[str, Mapping[str, int]], self._ledger["standings"]).get(best)
        if self.team.mode == "independent" or best == member or standing is None:
            return None
        state = self.member(best)
        return state.actor if standing.get("resets", 0) == state.scalars.resets else None

    # --- acting -------------------------------------------------------------------------------------------------------

    def deployed_weights(self, member: str) -> dict[str, NDArray[np.float32]]:
        """Weights of a member's rollout policy as it is deployed."""
        return self.weights_of(self.member(member), group_of(self.team, member), deployed=True)

    def weights_of(self, state: MemberState, group: str, *, deployed: bool = False) -> dict[str, NDArray[np.float32]]:
        """Weights of the rollout policy of a member's training state, the newest or as ``deployed``."""
        encoder, scales = self.encoder(group), self.scales(group)
        return acting_weights(state, encoder, scales, self.team.member.feature_scale, deployed=deployed)

    def seat_weights(self, seats: Sequence[str], *, deployed: bool) -> Arrays:
        """Weights of all seated members, the newest or as ``deployed``, ``name/`` before each key."""
        joined: dict[str, NDArray[np.generic]] = {}
        for name in sorted(set(seats)):
            joined |= prefixed(self.weights_of(self.member(name), group_of(self.team, name), deployed=deployed), name)
        return joined

    def policy_state(self, seats: Sequence[str]) -> NDArray[np.float32]:
        """State (E, S) from which the seated policies continue, as the pinned encoder computes it from the rows."""
        states = [self.view(group_of(self.team, name)).stream.policy_state[e] for e, name in enumerate(seats)]
        return np.stack(states)

    def environment_snapshot(self) -> Arrays | None:
        """Where the nominal environments stand; ``None`` before the first stretch."""
        path = self._store.path(self.base, ENVIRONMENT_FILE)
        return load_file(path) if path.exists() else None

    # --- rows ---------------------------------------------------------------------------------------------------------

    def nominal_rows(self) -> Arrays:
        """Committed columns of the nominal stream, memory-mapped; there must be rows."""
        return self._nominal

    @cached_property
    def _nominal(self) -> dict[str, NDArray[np.generic]]:
        return self._arrays(NOMINAL)

    def _arrays(self, stream: str) -> dict[str, NDArray[np.generic]]:
        return ExperienceReader(self._run_dir / "experience" / stream).columns(self.rows[stream])

    def _acted(self, members: Sequence[str]) -> NDArray[np.bool_]:
        """Mask (T, E) of the nominal rows in which one of ``members`` acted."""
        return np.isin(self._nominal["member"], [self.team.members.index(name) for name in members])
