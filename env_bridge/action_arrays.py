"""What a caller gives as actions, read as arrays of the environments' type: an ``ActionError`` for what is none.

Imports neither mujoco nor gymnasium, for the client. Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swarm.errors import ActionError

NOTHING: Final = "nothing was stepped"


def read_numbers(given: object) -> NDArray[Any]:
    """Return ``given`` as an array of numbers. Raises ``ActionError`` for text, ragged lists and so on."""
    try:
        numbers = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ActionError(
            f"actions of type {type(given).__name__} are no array of numbers ({reason}); {NOTHING}"
        ) from None
    if numbers.dtype.kind not in "biuf":
        raise ActionError(
            f"actions of type {type(given).__name__} are an array of {numbers.dtype}, expected numbers; {NOTHING}"
        )
    return numbers


def cast(given: object, dtype: np.dtype[Any], wanted: tuple[int, ...]) -> NDArray[Any]:
    """Return ``given`` as an array of ``dtype``: real numbers are rounded, whole ones must be whole and fit.

    What is too large for a real number becomes infinite; `env_bridge.vector_env.check_action` refuses that.

    Args:
        wanted: shape (E, …).

    Raises:
        ActionError: no array of numbers or not of this shape; or naming environment and index of a number that
            ``dtype`` does not have.
    """
    numbers = read_numbers(given)
    check_shape(numbers, wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        result = numbers.astype(dtype, copy=False)
    if dtype.kind != "f":
        wrong = result != numbers
        if wrong.any():
            place = first(wrong)
            limits = np.iinfo(dtype) if dtype.kind in "iu" else None
            expected = "0 or 1" if limits is None else f"a whole number from {limits.min} to {limits.max}"
            raise ActionError(f"{name(place)} is {numbers[place]}, expected {expected}; {NOTHING}")
    return result


def check_shape(actions: NDArray[Any], wanted: tuple[int, ...]) -> None:
    """Raise ``ActionError`` unless actions have the ``wanted`` shape (E, …)."""
    if actions.shape != wanted:
        raise ActionError(f"actions have shape {actions.shape}, expected {wanted}; {NOTHING}")


def check_range(actions: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> None:
    """Raise ``ActionError`` naming environment and index of an action outside of ``low`` to ``high``, each (E, …)."""
    outside = (actions < low) | (actions > high)
    if outside.any():
        place = first(outside)
        raise ActionError(f"{name(place)} is {actions[place]:g}, expected {low[place]:g} to {high[place]:g}; {NOTHING}")


def first(marked: NDArray[np.bool_]) -> tuple[int, ...]:
    """Where the first true one is."""
    return tuple(int(number) for number in np.argwhere(marked)[0])


def name(place: Iterable[int]) -> str:
    """What an error calls the number at ``place`` of actions (E, …)."""
    environment, *rest = place
    return " ".join(("action", *map(str, rest), f"of environment {environment}"))
