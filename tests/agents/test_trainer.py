from __future__ import annotations

from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from agents.config import SacConfig, TeamConfig
from agents.learning.resets import reset
from agents.learning.sac import learn
from agents.ledger import Standing
from agents.member import from_arrays, is_finite, to_arrays
from agents.pinned import Pinned, check_round, member_file
from agents.trainer import Trainer, joined
from swarm.checkpoint import CheckpointStore
from swarm.errors import CheckpointError
from tests.agents.made_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TeamConfig]:
    """A committed round 1 whose best member is 'meta'."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, make_run(path)


def pinned(run: tuple[Path, TeamConfig], **settings: object) -> Pinned:
    path, team = run
    return Pinned(path, replace(team, sac=replace(team.sac, **settings)), 1)


def trained(run: tuple[Path, TeamConfig], member: str, round_index: int = 2, **settings: object) -> Trainer:
    trainer = Trainer(pinned(run, **settings), member, round_index)
    trainer.train(5)
    return trainer


def test_the_best_member_guides_all_others_and_nobody_guides_it(run: tuple[Path, TeamConfig]) -> None:
    base = pinned(run)
    best = base.member("meta")
    guide = base.guide("state")
    assert guide is not None
    assert torch.equal(guide, best.sizes.split(best.theta)[1])
    assert base.guide("meta") is None


def experienced(base: Pinned, *reset_now: str) -> None:
    """Give every member 40 000 updates, and those named new networks after them."""
    for name in base.team.members:
        member = base.member(name)
        member = replace(member, scalars=replace(member.scalars, critic_steps=40_000, actor_steps=40_000))
        base._members[name] = reset(member, 3, seed=7) if name in reset_now else member


def test_critics_that_were_just_drawn_afresh_are_nobodys_peers_but_beginners(run: tuple[Path, TeamConfig]) -> None:
    base = pinned(run)
    experienced(base, "state", "adaptation")
    for name, peers in (("meta", ("coordinator", "environment")), ("state", set(base.team.members) - {"state"})):
        found = base.peer_targets(name)
        assert found is not None
        expected = [base.member(peer).targets for peer in base.team.members if peer in peers]
        assert torch.equal(found, torch.cat(expected))


def test_a_best_member_that_was_reset_guides_nobody_until_it_is_evaluated_again(tmp_path: Path) -> None:
    team = make_run(tmp_path / "run")
    base = Pinned(tmp_path / "run", team, 1)
    experienced(base, "meta")
    assert base.guide("state") is None
    assert base.guide("meta") is None
    standing = Standing(mean_return=7.5, distance_m=1.0, round_index=1, resets=1)
    store = CheckpointStore(tmp_path / "run")
    manifest = store.read_manifest(1)
    state = store.load_ledger(manifest)
    state["ledger"] = {**state["ledger"], "standings": {"meta": asdict(standing)}}
    store.commit(2, {}, rows=manifest.rows, ledger=state)
    later = Pinned(tmp_path / "run", team, 2)
    experienced(later, "meta")
    guide = later.guide("state")
    assert guide is not None
    assert torch.equal(guide, later.member("meta").actor)


def test_guidance_and_imitation_change_who_follows_and_are_told_in_metrics(run: tuple[Path, TeamConfig]) -> None:
    plain = trained(run, "state")
    guided = trained(run, "state", guidance=1.0)
    imitating = trained(run, "state", imitation=1.0)
    assert len({trainer.to_bytes() for trainer in (plain, guided, imitating)}) == 3
    assert "guide_weight" not in plain.metrics()
    assert guided.metrics()["guide_weight"] == 1.0
    assert imitating.metrics()["imitated_share"] > 0
    assert trained(run, "meta", guidance=1.0).to_bytes() == trained(run, "meta").to_bytes()


def test_members_have_discounts_by_place_and_pool_targets_only_within_one(run: tuple[Path, TeamConfig]) -> None:
    base = pinned(run, discounts=(0.97, 0.99))
    assert [base.team.discount_of(name) for name in base.team.members] == [0.97, 0.99, 0.97, 0.99, 0.97]
    everybody, alike = pinned(run).peer_targets("state"), base.peer_targets("state")
    assert everybody is not None
    assert alike is not None
    assert (len(everybody), len(alike)) == (8, 4)
    expected = torch.cat([base.member(name).targets for name in ("coordinator", "adaptation")])
    assert torch.equal(alike, expected)
    assert pinned(run, discounts=(0.97, 0.975, 0.98, 0.985, 0.99)).peer_targets("state") is None


def test_the_own_discount_is_what_a_member_learns_with(run: tuple[Path, TeamConfig]) -> None:
    _, team = run
    own = (0.5, team.sac.discount)
    assert (
        trained(run, "environment", discounts=own, pooled_targets=1).to_bytes()
        == trained(run, "environment", pooled_targets=1).to_bytes()
    )
    assert trained(run, "coordinator", discounts=own).to_bytes() != trained(run, "coordinator").to_bytes()


def test_a_member_is_reset_at_its_turn_only_and_says_so(run: tuple[Path, TeamConfig], tmp_path: Path) -> None:
    path, team = run
    settings = replace(team, sac=replace(team.sac, reset_every=1))
    base = Pinned(path, settings, 1)
    old = base.member("environment")
    base._members["environment"] = replace(old, scalars=replace(old.scalars, critic_steps=2, actor_steps=2))
    place = team.members.index("environment")
    turn, other = Trainer(base, "environment", 5 + place), Trainer(base, "environment", 6 + place)
    for trainer in (turn, other):
        trainer.train(1)
    assert (turn.metrics()["resets"], other.metrics()["resets"]) == (1, 0)


def test_metrics_add_up_counts_and_weigh_means_over_all_lots(run: tuple[Path, TeamConfig]) -> None:
    base = pinned(run)
    two, first = Trainer(base, "state", 2), Trainer(base, "state", 2)
    two.train(5)
    first.train(5)
    two.train(15)
    one = first.metrics()
    metrics = learn(base.member("state"), None, *base.replay("state"), 0, np.random.default_rng(0), SacConfig())[1]
    assert (one["num_updates"], two.metrics()["num_updates"]) == (5, 20)
    lots = [
        replace(metrics, num_updates=5, critic_loss=4.0, entropy=nan, temperature=0.5, skipped=7),
        replace(metrics, num_updates=15, critic_loss=8.0, entropy=1.5, temperature=0.25, skipped=1),
        replace(metrics, num_updates=0, critic_loss=nan, entropy=nan, temperature=nan, skipped=20),
    ]
    found = joined(lots)
    assert (found.num_updates, found.skipped, found.critic_loss) == (20, 28, 7.0)
    assert (found.entropy, found.temperature) == (1.5, 0.25)


def test_a_lot_that_leads_to_what_is_not_finite_is_left_out_and_counted(run: tuple[Path, TeamConfig]) -> None:
    """Rewards are finite, but so large that Adam's second moment is not: the parameters would never move again."""
    base = pinned(run)
    trainer = Trainer(base, "state", 2)
    rewards = base.replay("state")[0].packed[:, -2]
    usual = rewards.clone()
    rewards.fill_(1e25)
    trainer.train(5)
    assert trainer.metrics() == {"num_updates": 0, "skipped": 5, "resets": 0}
    assert torch.equal(torch.from_numpy(load(trainer.to_bytes())["theta"]), base.member("state").theta)
    rewards.copy_(usual)
    trainer.train(5)
    assert (trainer.metrics()["num_updates"], trainer.metrics()["skipped"]) == (5, 5)
    _, team = run
    after = from_arrays(team.member, *base.sizes, load(trainer.to_bytes()))
    assert is_finite(after)
    assert after.scalars.skipped == 5
    assert not torch.equal(after.theta, base.member("state").theta)


def test_a_run_with_a_member_that_is_not_finite_is_not_resumed(tmp_path: Path) -> None:
    team = make_run(tmp_path / "run")
    check_round(tmp_path / "run", team, 1)
    store = CheckpointStore(tmp_path / "run")
    manifest = store.read_manifest(1)
    member = Pinned(tmp_path / "run", team, 1).member("state")
    member.m[3] = inf
    file = member_file("state")
    store.commit(
        2, {file: store.stage(2, file, save(to_arrays(member)))}, rows=manifest.rows, ledger=store.load_ledger(manifest)
    )
    with pytest.raises(CheckpointError, match=r"member state of round 2 is not finite.*delete .*round-000002$"):
        check_round(tmp_path / "run", team, 2)


def test_extras_are_off_by_default() -> None:
    sac = SacConfig()
    assert (sac.guidance, sac.imitation, sac.reset_every, sac.discounts) == (0.0, 0.0, 0, ())
