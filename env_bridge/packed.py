"""A rollout's result on its way: what says the same twice is sent once.

Letters: T steps, E environments, O observation, K episodes that ended.

What follows an observation is the next row, but where an episode ended. Packed, column ``observation`` has T + 1 rows,
and ``ended_observation`` (K, O) the last ones of the episodes, in their order, instead of ``next_observation``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from swarm.environment import RolloutResult
from swarm.errors import CodecError


def unpack(result: RolloutResult) -> RolloutResult:
    """Give a packed result its column ``next_observation``; of a row that is not valid, it is the observation.

    Raises:
        CodecError: it is no packed result.
    """
    columns = dict(result.columns)
    ended_observation = columns.pop("ended_observation", None)
    flags = [np.asarray(columns.get(name, ()), np.bool_) for name in ("terminated", "truncated", "valid")]
    observation = columns.get("observation")
    if ended_observation is None or observation is None or any(len(flag) != len(observation) - 1 for flag in flags):
        raise CodecError("bad-array", f"a rollout with columns {', '.join(result.columns)} that do not fit each other")
    ended, valid = flags[0] | flags[1], flags[2]
    if len(ended_observation) != np.count_nonzero(ended):
        raise CodecError(
            "bad-array", f"{len(ended_observation)} last observations of {np.count_nonzero(ended)} episodes"
        )
    following = observation[1:].copy()
    following[ended] = ended_observation
    following[~valid] = observation[:-1][~valid]
    columns |= {"observation": observation[:-1], "next_observation": following}
    return replace(result, columns=columns)
