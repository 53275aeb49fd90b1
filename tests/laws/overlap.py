"""How well draft and target overlapped: wall time of overlapped rounds against the longer of the two sides."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Sums over the rounds in which the draft worked during a verification, seconds.

    wall_s: from the end of serial drafting to the end of the round. ahead_s: the draft's work meanwhile. bound_s: the sum
    of the longer side of each round, what perfect overlap would take. serial_s: both sides one after the other.
    """

    num_rounds: int
    wall_s: float
    ahead_s: float
    verify_s: float
    bound_s: float

    @property
    def wall_over_bound(self) -> float:
        """1 is perfect overlap."""
        return self.wall_s / self.bound_s

    @property
    def wall_over_serial(self) -> float:
        """1 is no overlap at all."""
        return self.wall_s / (self.ahead_s + self.verify_s)


def measure_overlap(ops: pd.DataFrame, rounds: pd.DataFrame) -> Overlap:
    """Overlap of a run, from its operations and rounds."""
    keys = ["request_id", "round"]
    timed = ops.assign(seconds=ops.end_s - ops.start_s)
    drafting = timed[timed.actor == "draft"]
    ahead = drafting[drafting.is_beside].groupby(keys).seconds.sum().rename("ahead_s")
    serial = drafting[~drafting.is_beside].groupby(keys).seconds.sum().rename("serial_s")
    table = rounds.set_index(keys)[["start_s", "end_s", "verify_s"]].join(ahead, how="inner").join(serial).fillna(0.0)
    if table.empty:
        raise ValueError("no round overlapped drafting with verification; record a policy that does, such as pearl.")
    return Overlap(
        num_rounds=len(table),
        wall_s=float((table.end_s - table.start_s - table.serial_s).sum()),
        ahead_s=float(table.ahead_s.sum()),
        verify_s=float(table.verify_s.sum()),
        bound_s=float(table[["ahead_s", "verify_s"]].max(axis=1).sum()),
    )
