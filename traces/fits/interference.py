"""Two models at work at once slow each other down, and only then: how much of its speed each keeps while the other works.

One model for a device that two models share as typed (`Interference.of`) and for two devices that were measured to slow
each other down (`fit_interference`): as long as both work, each goes at its pace, a share of the speed that it has alone;
as soon as one is done the other goes at full speed. So a look of one step costs a verification what it loses meanwhile,
and no more.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from traces.schema import Actor, OpKind

Floats = NDArray[np.float64]
MIN_PACE = 0.05  # below which no pace falls with width or rows, unless the smallest shape is slower still
MIN_OPS = 30  # operations of each sort below which a pace is not fitted
MIN_EFFECT = 3.0  # standard errors below which an effect is left out
_MOSTLY = 0.9  # share of a forward that has to overlap for it to count as beside, or not to for it to count as alone


@dataclass(frozen=True)
class Pace:
    """Share of its speed that a model keeps while the other works too.

    base: where the target verifies one token and the draft forwards one row. more_tokens, more_rows: what each further
    token of the verification and each further row of the draft's forward add.

    >>> float(Pace(0.75, more_tokens=-0.125).at(num_tokens=3, num_rows=1))
    0.5
    """

    base: float = 1.0
    more_tokens: float = 0.0
    more_rows: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.base <= 1:
            raise ValueError(f"a pace must be above 0 and at most 1, but got {self.base}.")
        if not math.isfinite(self.more_tokens + self.more_rows):
            raise ValueError("what tokens and rows add to a pace must be finite numbers.")

    def at(self, num_tokens: ArrayLike, num_rows: ArrayLike) -> Floats:
        """The pace beside one another of a verification of num_tokens and forwards of num_rows; broadcasts."""
        if not (self.more_tokens or self.more_rows):
            return np.full(np.broadcast_shapes(np.shape(num_tokens), np.shape(num_rows)), self.base)
        pace = self.base + self.more_tokens * (np.asarray(num_tokens) - 1) + self.more_rows * (np.asarray(num_rows) - 1)
        paces: Floats = np.clip(pace, min(MIN_PACE, self.base), 1.0)
        return paces

    @property
    def words(self) -> str:
        """For a report."""
        parts = [f"{self.base:.3f} of its speed"]
        parts += [f"{self.more_tokens:+.3f} for each further token"] if self.more_tokens else []
        parts += [f"{self.more_rows:+.3f} for each further row"] if self.more_rows else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Interference:
    """The paces of the two models while both work. prefill: of both while one of them reads a prompt; 1 where prompts were
    measured as both models read them."""

    target: Pace = field(default_factory=Pace)
    draft: Pace = field(default_factory=Pace)
    prefill: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.prefill <= 1:
            raise ValueError(f"a pace must be above 0 and at most 1, but got {self.prefill} for prefill.")

    @classmethod
    def of(cls, factor: float) -> Interference:
        """Of a shared device on which both models take `factor` times as long while both work: 1 is none, 2 is as bad as
        taking turns."""
        if not 1 <= factor < math.inf:
            raise ValueError(
                f"interference must be at least 1 and finite, but got {factor}; 1 is none, 2 is taking turns."
            )
        return cls(target=Pace(1 / factor), draft=Pace(1 / factor), prefill=1 / factor)

    @property
    def is_none(self) -> bool:
        """Whether nothing slows anything down."""
        return self == Interference()

    def paces(self, num_tokens: ArrayLike, num_rows: ArrayLike) -> tuple[Floats, Floats]:
        """The target's and the draft's."""
        return self.target.at(num_tokens, num_rows), self.draft.at(num_tokens, num_rows)


def overlap_of(ops: pd.DataFrame) -> pd.DataFrame:
    """(ops,) how long the other model worked meanwhile on the same round, in columns `overlap_s`, `other_tokens` (of the
    target's verification), `other_rows` (of the draft's forwards, their mean over that time) and `ahead_forwards` (of the
    draft, in the round). ops: with a unique index.
    """
    both = ops[(ops["kind"] != OpKind.PREFILL) & (ops["actor"] != Actor.HOST)]
    columns = ["request_id", "round", "start_s", "end_s", "num_tokens", "num_branches"]
    target = both.loc[both["actor"] == Actor.TARGET, [*columns, "kind"]].reset_index(names="target")
    draft = both.loc[(both["actor"] == Actor.DRAFT) & both["is_beside"], columns].reset_index(names="draft")
    pairs = target.merge(draft, on=["request_id", "round"], suffixes=("", "_draft"))
    starts, ends = (pairs[[name, f"{name}_draft"]].to_numpy() for name in ("start_s", "end_s"))
    pairs["overlap_s"] = np.maximum(0.0, ends.min(axis=1) - starts.max(axis=1))
    pairs["row_s"] = pairs["overlap_s"] * pairs["num_branches_draft"]
    found = pd.DataFrame({"overlap_s": 0.0, "row_s": 0.0, "other_tokens": 1.0}, index=ops.index)
    for side in ("target", "draft"):
        sums = pairs.groupby(side)[["overlap_s", "row_s"]].sum()
        found.loc[sums.index, ["overlap_s", "row_s"]] = sums
    widths = pairs[pairs["kind"] == OpKind.VERIFY].groupby("draft")["num_tokens"].first()
    found.loc[widths.index, "other_tokens"] = widths.astype(float)
    rows = found["row_s"] / found["overlap_s"].mask(found["overlap_s"] == 0)
    return found.assign(other_rows=rows.fillna(1.0)).drop(columns="row_s")


def alone_share(ops: pd.DataFrame, interference: Interference) -> Floats:
    """(ops,) the share of its measured time that each operation would have taken alone. ops: with `overlap_of`'s columns."""
    is_target = (ops["actor"] == Actor.TARGET).to_numpy()
    tokens = np.where(is_target, ops["num_tokens"], ops["other_tokens"])
    rows = np.where(is_target, ops["other_rows"], ops["num_branches"])
    target, draft = interference.paces(tokens, rows)
    seconds = ops["seconds"].to_numpy()
    lost = ops["overlap_s"].to_numpy() * (1 - np.where(is_target, target, draft))
    share: Floats = 1 - np.divide(lost, seconds, out=np.zeros_like(lost), where=seconds > 0)
    return np.clip(share, min(MIN_PACE, interference.target.base, interference.draft.base), 1.0)


def with_paces(data: Any) -> Any:
    """A calibration's data with what older ones said of interference as paces: how much longer a verification beside a
    working draft took, and a forward of the draft during it. Raises ValueError for factors that are none."""
    if isinstance(data, dict) and "interference" not in data and {"beside", "draft_beside"} & set(data):
        given = [data.get(name, 1.0) for name in ("beside", "draft_beside")]
        if not all(isinstance(factor, int | float) for factor in given):
            raise ValueError(f"beside and draft_beside must be numbers, but are {given[0]!r} and {given[1]!r}")
        slowed = map(Interference.of, given)
        target, draft = (interference.target for interference in slowed)
        data = {**data, "interference": {"target": asdict(target), "draft": asdict(draft)}}
    return data


def fit_target_pace(verify: pd.DataFrame, mean_s: Floats) -> Pace:
    """How much slower verifications were for what the draft did meanwhile.

    verify: verifications of requests that draft, with `overlap_of`'s columns and `ahead_s`, the draft's undisturbed seconds
    during each; mean_s: of each at its width, roughly. A verification of which o seconds overlapped takes o (1 - pace) more
    than one of the same width alone. A slow one overlaps longer, too, so that the overlap to be expected stands in for the
    measured one (an instrument); widths are compared with themselves only.
    """
    verify = verify.reset_index(drop=True)
    verify["expected_s"] = np.minimum(verify["ahead_s"], mean_s)
    is_beside = verify["ahead_s"] > 0
    sizes = pd.crosstab(verify["num_tokens"], is_beside).reindex(columns=[False, True], fill_value=0)
    counts = sizes.min(axis=1)
    if counts.sum() < MIN_OPS:
        return Pace()
    chosen = verify[verify["num_tokens"].isin(counts.index[counts > 0])]
    scale = chosen.groupby("num_tokens")["seconds"].transform("mean").to_numpy()
    tokens, rows = chosen["num_tokens"].to_numpy() - 1.0, chosen["other_rows"].to_numpy() - 1.0

    def terms(overlap_s: Floats) -> Floats:
        columns = np.stack([overlap_s, overlap_s * tokens, overlap_s * rows], axis=1) / scale[:, None]
        centred: Floats = columns - pd.DataFrame(columns).groupby(chosen["num_tokens"].to_numpy()).transform("mean")
        return np.asarray(centred)

    seconds = chosen["seconds"].to_numpy() / scale
    x, z = terms(chosen["overlap_s"].to_numpy()), terms(chosen["expected_s"].to_numpy())
    y = seconds - pd.Series(seconds).groupby(chosen["num_tokens"].to_numpy()).transform("mean").to_numpy()
    lost = _instrumented(x, z, y)
    return _pace(1 - lost[0], 0.0 - lost[1], 0.0 - lost[2])


def fit_draft_pace(ahead: pd.DataFrame, alone_ratio: float, mean_s: Floats, *, by_width: bool) -> Pace:
    """How much slower forwards of the draft were during a verification than alone.

    ahead: forwards with `overlap_of`'s columns and `seconds`; mean_s: what a rough law says of each; alone_ratio: of measured
    to rough seconds where the draft works alone. Only forwards that overlapped for (nearly) all their time are compared.
    by_width: whether the pace may depend on the verification's width.
    """
    is_beside = (ahead["overlap_s"] >= _MOSTLY * ahead["seconds"]).to_numpy()
    if is_beside.sum() < MIN_OPS:
        return Pace()
    beside, alone_s = ahead[is_beside], mean_s[is_beside] * alone_ratio
    tokens = beside["other_tokens"].to_numpy() - 1.0
    # alone = pace x measured: shapes stand in for themselves, so that noise in the measured seconds bends nothing.
    z = np.stack([np.ones(len(tokens)), tokens * by_width], axis=1)
    x = z * (beside["seconds"].to_numpy() / alone_s.mean())[:, None]
    found = _instrumented(x, z, alone_s / alone_s.mean())
    return _pace(found[0], found[1], 0.0)


def _pace(base: float, more_tokens: float, more_rows: float) -> Pace:
    if base >= 1 and more_tokens >= 0 and more_rows >= 0:
        return Pace()
    return Pace(float(np.clip(base, MIN_PACE, 1.0)), more_tokens=float(more_tokens), more_rows=float(more_rows))


def _instrumented(x: Floats, z: Floats, y: Floats) -> Floats:
    """Coefficients of y = x b with z in the place of x where it is multiplied with errors; effects of further columns than
    the first that are within MIN_EFFECT standard errors of nothing are left out, the least certain first."""
    used = [column for column in range(x.shape[1]) if np.abs(z[:, column]).max(initial=0.0) > 0]
    while used:
        cross = z[:, used].T @ x[:, used]
        if np.linalg.cond(cross) > 1e10:
            used.pop()
            continue
        inverse = np.linalg.inv(cross)
        found = inverse @ (z[:, used].T @ y)
        errors = z[:, used] * (y - x[:, used] @ found)[:, None]
        stderr = np.sqrt(np.diag(inverse @ (errors.T @ errors) @ inverse.T))
        certainty = np.abs(found) / np.maximum(stderr, 1e-300)
        further = [index for index, column in enumerate(used) if column]
        weakest = min(further, key=lambda index: certainty[index], default=None)
        if weakest is None or certainty[weakest] >= MIN_EFFECT:
            break
        used.pop(weakest)
    coefficients = np.zeros(x.shape[1])
    if used:
        coefficients[used] = found
    return coefficients
