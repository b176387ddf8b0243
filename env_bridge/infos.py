"""Infos on their way between processes: of single environments (told), and of all of them with masks. No pickle.

Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swarm.errors import ConfigError
from swarm.messages import Arrays, Json

Columns = dict[str, NDArray[Any]]
"""Infos of all environments by key, (E, …)."""
Told = tuple[tuple[int, dict[str, Any]], ...]
"""Infos of single environments, as (index, info)."""
PREFIX: Final = "info"
ROWS: Final = ":rows"
"""Ends the name of an array that has rows only of the environments in the mask of its key."""


def encode_told(told: Told) -> list[Json]:
    """Infos of environments of their own class as plain data. Raises ``ConfigError`` for what cannot be sent."""
    return [[index, _to_plain(info, "")] for index, info in told]


def _to_plain(value: Any, place: str) -> Json:  # noqa: ANN401 - infos hold anything
    """Tagged plain data that `decode_told` turns back into the same types."""
    match value:
        case dict():
            return ["map", {key: _to_plain(item, f"{place}/{key}") for key, item in value.items()}]
        case np.ndarray() | np.generic() if value.dtype.kind in "biuf":
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return [kind, value.dtype.str, list(value.shape), value.tobytes()]
        case None | bool() | int() | float() | str():
            return ["plain", value]
    raise ConfigError(f"info {place[1:]!r} is a {type(value).__name__}, which cannot leave its process: use workers=0")


def decode_told(told: Any) -> Told:  # noqa: ANN401 - decoded data
    """Rebuild what `encode_told` wrote."""
    return tuple((index, _from_plain(info)) for index, info in told)


def _from_plain(value: Any) -> Any:  # noqa: ANN401
    match value:
        case ["map", items]:
            return {key: _from_plain(item) for key, item in items.items()}
        case ["array", dtype, shape, raw]:
            return np.frombuffer(raw, dtype).reshape(shape).copy()
        case ["scalar", dtype, _, raw]:
            return np.frombuffer(raw, dtype)[0]
        case [_, plain]:
            return plain
    raise AssertionError(value)


def infos_to_arrays(infos: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, NDArray[np.generic]]:
    """Vector infos as plain arrays by path; observations that only some environments have become rows of one array.

    Raises:
        ConfigError: an info that is no number, and so cannot leave its process.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, value in infos.items():
        path = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            arrays |= infos_to_arrays(value, path)
        elif value.dtype.kind in "biuf":
            arrays[path] = value
        else:
            given = [item for item in value if item is not None]
            if not all(isinstance(item, np.ndarray) and item.dtype.kind in "biuf" for item in given):
                raise ConfigError(f"info {key!r} is no array of numbers, and cannot leave its process: use workers=0")
            arrays[f"{path}{ROWS}"] = np.stack(given)
    return arrays


def infos_from_arrays(arrays: Arrays, prefix: str = PREFIX) -> dict[str, Any]:
    """Rebuild what `infos_to_arrays` wrote."""
    infos: dict[str, Any] = {}
    for path, array in arrays.items():
        if not path.startswith(f"{prefix}/"):
            continue
        *folders, key = path.removeprefix(f"{prefix}/").split("/")
        place = infos
        for folder in folders:
            place = place.setdefault(folder, {})
        if key.endswith(ROWS):
            key = key.removesuffix(ROWS)
            mask = np.asarray(arrays[path.rpartition("/")[0] + f"/_{key}"])
            whole = np.full(len(mask), fill_value=None, dtype=object)
            for index, row in zip(np.flatnonzero(mask).tolist(), array, strict=True):
                whole[index] = row.copy()
            place[key] = whole
        else:
            place[key] = array.copy()
    return infos
