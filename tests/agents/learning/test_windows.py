from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.learning.encoder import (
    Columns,
    EncoderSizes,
    encode,
    encode_stream,
    init_encoder,
    normalize,
    normalize_reward,
)
from agents.learning.normalizer import Scales
from agents.learning.windows import cut_windows, sample_windows, split_windows, window_starts
from swarm.errors import ConfigError


def test_windows_hold_consecutive_rows_of_one_environment(columns: Columns) -> None:
    windows = cut_windows(columns, None, np.array([[3, 1], [20, 2]]), 5)
    assert torch.equal(windows.observation[:, 0], columns.observation[3:8, 1])
    assert torch.equal(windows.reward[:, 1], columns.reward[20:25, 2])


def test_what_came_before_an_episode_is_zero(columns: Columns) -> None:
    start, environment = (int(x) for x in columns.reset[10:].nonzero()[0])
    windows = cut_windows(columns, None, np.array([[start + 8, environment]]), 5)
    assert windows.keep[2].tolist() == [False]
    assert not windows.previous_action[2].any()
    assert not windows.previous_reward[2].any()
    assert windows.previous_action[1].any()


def test_encoding_a_window_from_its_stored_state_equals_the_stream(columns: Columns, scales: Scales) -> None:
    sizes = EncoderSizes(observation=5, action=2, projection=0, features=6, states=4)
    flat = torch.zeros(sizes.layout.size)
    init_encoder(sizes, flat, torch.Generator().manual_seed(1))
    w = sizes.layout.views(flat)
    stream = encode_stream(sizes, w, columns, scales)
    whole = cut_windows(columns, stream.states, np.array([[0, 0], [90, 1], [33, 3]]), 16)
    for windows, offset in zip(split_windows(whole, 8), (0, 8), strict=True):
        features = encode(
            w,
            normalize(windows.observation, scales, 10.0),
            windows.previous_action,
            normalize_reward(windows.previous_reward, scales, 10.0),
            windows.keep,
            windows.states[0],
        )
        expected = stream.features[90 + offset : 98 + offset, 1]
        torch.testing.assert_close(features[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_query_window_follows_its_support_window(columns: Columns) -> None:
    support, query = split_windows(sample_windows(columns, None, np.random.default_rng(0), 6, 14), 7)
    together = torch.cat([support.observation, query.observation])
    for w in range(6):
        where = (columns.observation == together[0, w]).all(-1).nonzero()[0]
        assert torch.equal(columns.observation[where[0] : where[0] + 14, where[1]], together[:, w])
    assert not query.keep[0].any()


def test_windows_longer_than_the_experience_are_refused(columns: Columns) -> None:
    with pytest.raises(ConfigError, match="got 200 steps of experience, none of 201 in a row"):
        sample_windows(columns, None, np.random.default_rng(0), 2, 201)


def test_windows_hold_only_rows_that_may_be_used(columns: Columns) -> None:
    allowed = np.zeros(columns.reset.shape, np.bool_)
    allowed[10:16, 2] = True
    allowed[20:24, 0] = True
    assert window_starts(allowed, 5).tolist() == [[10, 2], [11, 2]]
    windows = sample_windows(columns, None, np.random.default_rng(0), 20, 5, allowed)
    first = {tuple(row) for row in windows.observation[0].tolist()}
    assert first == {tuple(columns.observation[step, 2].tolist()) for step in (10, 11)}
    with pytest.raises(ConfigError, match="collect more first"):
        sample_windows(columns, None, np.random.default_rng(0), 20, 7, allowed)
