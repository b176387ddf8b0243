"""What is done to a whole batch in one pass: counting steps, looking for numbers that are not finite, joining infos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from env_bridge.autoreset import assemble, merged
from env_bridge.stepping import are_finite, count_step


def layouts(array: NDArray[Any]) -> list[NDArray[Any]]:
    return [array, np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_single_number_that_is_not_finite_is_found_anywhere(dtype: type[np.floating]) -> None:
    for size in (1, 7, 8, 33):
        clean = np.full((2, size), np.finfo(dtype).max)
        assert all(are_finite(view) for view in layouts(clean))
        for place in np.ndindex(clean.shape):
            for value in (np.nan, np.inf, -np.inf):
                spoilt = clean.copy()
                spoilt[place] = value
                assert not any(are_finite(view) for view in layouts(spoilt))
    assert are_finite(np.empty((0, 3), dtype))


def test_steps_are_counted_where_environments_were_stepped() -> None:
    elapsed, stepped = np.array([0, 8, 9, 9]), np.array([True, True, True, False])
    truncated, diverged = np.zeros(4, np.bool_), np.array([False, True, False, True])
    reward = np.array([np.nan, 1.0, 1.0, np.nan])
    assert count_step(elapsed, stepped, 10, reward, truncated, diverged, np.zeros((4, 3))) == (True, True)
    assert elapsed.tolist() == [1, 9, 10, 9]
    assert truncated.tolist() == [False, False, True, False]
    assert diverged.tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_observations_of_any_type_are_looked_at(dtype: type[np.generic]) -> None:
    flags = np.zeros(2, np.bool_)
    observation: NDArray[Any] = np.zeros((2, 3), dtype)
    given = (np.zeros(2, np.int64), np.ones(2, np.bool_), 10, np.zeros(2), flags, flags.copy())
    assert count_step(*given, observation) == (False, True)
    if observation.dtype.kind == "f":
        observation[1, 2] = np.inf
        assert count_step(*given, observation) == (False, False)


def test_columns_of_resets_replace_those_of_steps_and_zeros_what_neither_told() -> None:
    stepped = {"both": np.array([1.0, 2.0, 3.0]), "step": np.array([[1, 2], [3, 4], [5, 6]])}
    reset = {"both": np.array([10.0, 20.0, 30.0]), "reset": np.array([7.0, 8.0, 9.0])}
    columns = merged(stepped, reset, np.array([1]))
    assert {name: column.tolist() for name, column in columns.items()} == {
        "both": [1.0, 20.0, 3.0],
        "step": [[1, 2], [0, 0], [5, 6]],
        "reset": [0.0, 8.0, 0.0],
    }
    assert [*columns] == ["both", "step", "reset"]


@pytest.mark.parametrize("reset", [[False] * 3, [False, True, False], [True] * 3])
def test_each_key_has_a_mask_of_its_own_of_those_who_told_it(reset: list[bool]) -> None:
    columns = {name: np.zeros(3) for name in ("both", "step", "reset", "never")}
    infos = assemble(columns, ("both", "step"), ("both", "reset"), np.array(reset))
    told = {"both": [True] * 3, "step": [not flag for flag in reset], "reset": reset}
    expected = {name: mask for name, mask in told.items() if any(mask)}
    assert {name[1:]: mask.tolist() for name, mask in infos.items() if name.startswith("_")} == expected
    assert all(infos[name] is columns[name] for name in expected)
    masks = [infos[f"_{name}"] for name in expected]
    assert not any(np.shares_memory(mask, other) for mask in masks for other in masks if mask is not other)
