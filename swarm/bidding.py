"""Bids that learn: what an agent promised and what came of it.

Pure bookkeeping: ``record.update(predicted, realised)`` gives the next record. The coordinator keeps one record per
(agent, kind of work) in its ledger, so they are committed and resumed with the round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from swarm.errors import CheckpointError, InvalidTransition
from swarm.messages import Json

PRIOR_COUNT: Final = 4.0
"""Imagined perfect predictions behind the shrinkage: one lucky award does not make a reputation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BidRecord:
    """Track record of one agent at one kind of work.

    Attributes:
        count: awards that were scored.
        mean_predicted: mean value that its bids promised.
        mean_realised: mean value that came of them.
        mean_absolute: mean of |realised|, the scale of the error.
        mean_error: mean of |realised − predicted|.
        regret: sum of max(0, predicted − realised): value that the auction lost by believing it.
    """

    count: int = 0
    mean_predicted: float = 0.0
    mean_realised: float = 0.0
    mean_absolute: float = 0.0
    mean_error: float = 0.0
    regret: float = 0.0

    def update(self, predicted: float, realised: float) -> BidRecord:
        """Score one award. Raises ``InvalidTransition`` where a number is not finite."""
        if not (math.isfinite(predicted) and math.isfinite(realised)):
            raise InvalidTransition(
                f"got predicted={predicted}, realised={realised}, expected finite numbers; skip what diverged"
            )
        count = self.count + 1
        return BidRecord(
            count=count,
            mean_predicted=self.mean_predicted + (predicted - self.mean_predicted) / count,
            mean_realised=self.mean_realised + (realised - self.mean_realised) / count,
            mean_absolute=self.mean_absolute + (abs(realised) - self.mean_absolute) / count,
            mean_error=self.mean_error + (abs(realised - predicted) - self.mean_error) / count,
            regret=self.regret + max(0.0, predicted - realised),
        )

    @property
    def calibration(self) -> float:
        """Factor that turns the next prediction into an honest one: realised / predicted, shrunk towards 1.

        In [0, 10]: above 1 for an agent that promises too little, below 1 for one that promises too much; 1 before the
        first award.
        """
        prior = PRIOR_COUNT * max(abs(self.mean_predicted), abs(self.mean_realised))
        if prior == 0.0:
            return 1.0
        promised = prior + self.count * self.mean_predicted
        if promised <= 0.0:  # negative promises: a ratio of them says nothing
            return 1.0
        return min(10.0, max(0.0, (prior + self.count * self.mean_realised) / promised))

    @property
    def reputation(self) -> float:
        """How far its predictions can be relied on, in [0, 1]: 1 − relative error, shrunk towards ½."""
        scale = self.mean_absolute + self.mean_error
        reliability = 1.0 - self.mean_error / scale if scale > 0.0 else 1.0
        return (0.5 * PRIOR_COUNT + self.count * reliability) / (PRIOR_COUNT + self.count)

    def to_json(self) -> dict[str, Json]:
        """JSON-like form, with calibration and reputation added for readers; `from_json` ignores those."""
        return {**asdict(self), "calibration": self.calibration, "reputation": self.reputation}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> BidRecord:
        """Rebuild from `to_json`. Raises ``CheckpointError`` where a field is missing or of the wrong type."""
        checked: dict[str, float] = {}
        for name in (f.name for f in fields(cls) if f.name != "count"):
            value = data.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise CheckpointError(f"bid record has {name}={value!r}, expected a finite number")
            checked[name] = float(value)
        count = data.get("count")
        if type(count) is not int or count < 0:
            raise CheckpointError(f"bid record has count={count!r}, expected a whole number from 0")
        return cls(count=count, **checked)
