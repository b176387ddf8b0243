from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.learning.encoder import Columns, EncoderSizes, encode_stream, init_encoder
from agents.learning.normalizer import Scales
from agents.learning.replay import Replay, build_replay, draw_indices
from swarm.errors import ConfigError


@pytest.fixture
def replay(columns: Columns, scales: Scales) -> Replay:
    sizes = EncoderSizes(observation=5, action=2, projection=0, features=6, states=4)
    flat = torch.zeros(sizes.layout.size)
    init_encoder(sizes, flat, torch.Generator().manual_seed(1))
    return build_replay(columns, encode_stream(sizes, sizes.layout.views(flat), columns, scales))


def test_a_row_holds_state_action_successor_reward_and_whether_it_goes_on(replay: Replay, columns: Columns) -> None:
    row = replay.packed[41]
    assert replay.packed.shape[1] == 2 * (11 + 2) + 2
    assert torch.equal(row[11:13], columns.action[10, 1])
    assert not row[24:26].any()
    assert row[-2] == columns.reward[10, 1]


def test_only_true_terminations_end_the_value(replay: Replay, columns: Columns) -> None:
    truncated = torch.roll(columns.reset, -1, 0) & ~columns.terminated
    continues = replay.packed[:, -1].view(columns.reset.shape)
    assert truncated.any()
    assert continues[truncated].all()
    assert columns.terminated.any()
    assert not continues[columns.terminated].any()


def test_zeroed_features_leave_the_observation(columns: Columns, scales: Scales) -> None:
    sizes = EncoderSizes(observation=5, action=2, projection=0, features=6, states=4)
    flat = torch.zeros(sizes.layout.size)
    init_encoder(sizes, flat, torch.Generator().manual_seed(1))
    stream = encode_stream(sizes, sizes.layout.views(flat), columns, scales)
    packed = build_replay(columns, stream, feature_scale=0.0).packed
    assert not packed[:, 5:11].any()
    assert torch.equal(packed[:, :5], stream.visible.flatten(0, 1))


def test_selecting_keeps_rows_in_the_given_order(replay: Replay) -> None:
    assert torch.equal(replay.select(torch.tensor([7, 3])).packed, replay.packed[[7, 3]])


def test_the_own_share_of_each_batch_comes_from_own_rows() -> None:
    own = np.arange(1_000, 1_010)
    drawn = draw_indices(np.random.default_rng(0), 10_000, own, 0.25, (20, 40))
    assert np.isin(drawn[:, :10], own).all()
    assert np.isin(drawn[:, 10:], own).mean() < 0.05
    assert drawn.min() >= 0
    assert drawn.max() < 10_000


def test_who_never_acted_learns_from_all_rows() -> None:
    drawn = draw_indices(np.random.default_rng(0), 10_000, np.arange(0), 0.25, (20, 40))
    assert np.unique(drawn).size > 700


def test_learning_without_experience_is_refused() -> None:
    with pytest.raises(ConfigError, match="no experience yet"):
        draw_indices(np.random.default_rng(0), 0, np.arange(0), 0.25, (1, 4))
