"""From a recorded run to fitted models: how long each operation takes, with the error of the fit.

calibration = calibrate(read_run(folder))
print(calibration.report())
calibration.save("calibration.json")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from traces.files import reason_of, write_text
from traces.fits.acceptance.joint import JointAcceptance, fit_acceptance
from traces.fits.batched_ops import BATCH_SWEEP
from traces.fits.cold_start import ColdStart, fit_cold_start
from traces.fits.interference import (
    Interference,
    Pace,
    alone_share,
    fit_draft_pace,
    fit_target_pace,
    overlap_of,
    with_paces,
)
from traces.fits.latency import NUM_RESAMPLES, TERMS, LatencyFit, check_law, fit_latency
from traces.fits.round_check import RoundCheck, check_rounds
from traces.folder.run import Run
from traces.folder.tables import READABLE_VERSIONS
from traces.metrics.machine_speed import MachineSpeed, drift_sentence, machine_speed_of
from traces.mistakes import first_mistake, unique_json
from traces.schema import SCHEMA_VERSION, Actor, OpKind

__all__ = [
    "Calibration",
    "JointAcceptance",
    "LatencyFit",
    "RoundCheck",
    "calibrate",
    "fit_acceptance",
    "group_of",
    "groups_of",
]

MEASURED_KINDS = ("executed", "sweep")  # of run folders
GROUPS = ("draft", "read", "verify", "predict", "draft_prefill", "target_prefill", "host")
_GROUP_OF = {
    (Actor.DRAFT, OpKind.DRAFT): "draft",
    (Actor.DRAFT, OpKind.LOOK): "draft",
    (Actor.DRAFT, OpKind.BRANCH): "draft",
    (Actor.DRAFT, OpKind.READ): "read",
    (Actor.TARGET, OpKind.VERIFY): "verify",
    (Actor.TARGET, OpKind.PREDICT): "predict",
    (Actor.DRAFT, OpKind.PREFILL): "draft_prefill",
    (Actor.TARGET, OpKind.PREFILL): "target_prefill",
    (Actor.HOST, OpKind.HOST): "host",
}

NUM_COLD = 4  # draft forwards of a round that a wait slows down noticeably
MAX_DRAFTING = 100.0
MIN_OPS = 30  # operations of one kind below which their mean is not compared


def group_of(actor: Actor, kind: OpKind) -> str:
    """The group that an operation is fitted in: every forward of the draft that is no prefill is one law."""
    try:
        return _GROUP_OF[actor, kind]
    except KeyError:
        known = ", ".join(f"{known_actor} {known_kind}" for known_actor, known_kind in _GROUP_OF)
        raise ValueError(f"no latency is fitted for {actor!r} {kind!r}; known are {known}.") from None


def groups_of(ops: pd.DataFrame) -> NDArray[np.str_]:
    """(ops,) `group_of` of each, asked once for each actor and kind."""
    codes, distinct = pd.MultiIndex.from_frame(ops[["actor", "kind"]]).factorize()
    names = [group_of(Actor(actor), OpKind(kind)) for actor, kind in distinct]
    groups: NDArray[np.str_] = np.array(names, dtype=np.str_)[codes]
    return groups


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted latencies of one pair on one machine. fits: of GROUPS, those that the run has operations of.

    cold_start: what the first draft forwards of a round take more than later ones.
    drafting: how much longer a verification takes where a draft runs between verifications and uses the same caches.
    interference: how much slower both are while both work, on the same memory; none when not recorded.
    doubt: why what follows from these latencies supports no claim about speed; empty where it does.
    drift_range: between which speeds the machine moved meanwhile, in units of its median; the times are adjusted for it.
    """

    fits: Mapping[str, LatencyFit]
    round_check: RoundCheck | None
    num_requests: int
    num_unclean: int
    cold_start: ColdStart = field(default_factory=ColdStart)
    drafting: float = 1.0
    interference: Interference = field(default_factory=Interference)
    doubt: str = ""
    drift_range: tuple[float, float] = (1.0, 1.0)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 1 / MAX_DRAFTING <= self.drafting <= MAX_DRAFTING:
            raise ValueError(
                f"drafting of a calibration must lie in [{1 / MAX_DRAFTING}, {MAX_DRAFTING}], but got {self.drafting}."
            )
        if not 0 < self.drift_range[0] <= self.drift_range[1] < math.inf:
            raise ValueError(f"drift_range of a calibration must be positive, low to high, but got {self.drift_range}.")
        if self.num_requests < 0 or self.num_unclean < 0:
            raise ValueError(f"a calibration counts requests from 0, but got {self.num_requests}, {self.num_unclean}.")
        for group, law in self.fits.items():
            check_law(group, law)

    def fit_of(self, group: str) -> LatencyFit:
        """The law of one group, with a clear refusal when nothing of it was recorded."""
        if group not in self.fits:
            raise ValueError(
                f"this calibration saw no {group} operation (it has {', '.join(self.fits) or 'none'}); "
                "calibrate from a run that has some."
            )
        return self.fits[group]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_text(Path(path), TypeAdapter(Calibration).dump_json(self, indent=1).decode() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote, also before interference was told by paces."""
        try:
            calibration = TypeAdapter(Calibration).validate_python(with_paces(unique_json(Path(path).read_bytes())))
        except (OSError, ValueError) as error:
            reason = first_mistake(error) if isinstance(error, ValidationError) else reason_of(error)
            raise ValueError(
                f"{path} is not a calibration: {reason}; write one with `specbranch calibrate`."
            ) from error
        if calibration.schema_version not in READABLE_VERSIONS:
            raise ValueError(
                f"{path} has schema version {calibration.schema_version}, this code reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}; calibrate again."
            )
        return replace(calibration, schema_version=SCHEMA_VERSION)

    def report(self) -> str:
        """The fit as a small table, in milliseconds: coefficients with their 95% intervals, and how well they fit."""
        lines = [f"{'operation':<16}{'n':>7}{'R2':>7}{'error':>8}   ms [95%]"]
        for group, fit in self.fits.items():
            r2 = "-" if fit.r2 is None else f"{fit.r2:.3f}"
            lines.append(f"{group:<16}{fit.num_ops:>7}{r2:>7}{fit.error:>8.1%}")
            for term, value, (low, high) in zip(TERMS, fit.coefficients, fit.intervals, strict=True):
                if term not in fit.left_out:
                    lines.append(f"  {term:<36}   {1e3 * value:.5g} [{1e3 * low:.5g}, {1e3 * high:.5g}]")
            if fit.left_out:
                lines.append(f"  not identified, left out: {', '.join(fit.left_out)}")
        if self.cold_start.first_s:
            first_s, decay, full_s = self.cold_start.first_s, self.cold_start.decay, self.cold_start.full_s
            after = f"after a wait of {1e3 * full_s:.3g} ms or more" if full_s else "after every wait"
            lines.append(
                f"cold start of a round's drafting: +{1e3 * first_s:.3g} ms {after}, each forward {decay:.2g} of the last"
            )
        if self.drafting != 1:
            lines.append(f"verification where a draft runs in between: {self.drafting:.3f} of plain decoding's")
        for name, pace in (("the target", self.interference.target), ("the draft", self.interference.draft)):
            if pace != Pace():
                lines.append(f"while both work {name} keeps {pace.words}")
        if self.round_check:
            check = self.round_check
            lines.append(
                f"round: predicted {1e3 * check.predicted_s:.4g} ms, measured {1e3 * check.measured_s:.4g} ms "
                f"({check.error:+.1%}), n = {check.num_rounds}"
            )
        lines.append(f"{self.num_requests} requests; {self.num_unclean} more were disturbed and left out")
        lines += filter(None, (drift_sentence(self.drift_range), self.doubt))
        return "\n".join(lines)


def calibrate(
    run: Run, *, seed: int = 0, machine: MachineSpeed | None = None, num_resamples: int = NUM_RESAMPLES
) -> Calibration:
    """Fit every group of operations of a run, in times at the machine's median speed. Requests that were not clean
    (contention, throttling) are left out.

    seed: of the bootstrap, which takes num_resamples, and of the draws in the round check. machine: its speed over the run,
    None where the run itself is to tell.
    """
    doubts = []
    machine = machine or machine_speed_of(run.requests, run.rounds)
    if (kind := run.meta.get("kind", "executed")) not in MEASURED_KINDS:
        doubts.append(f"these latencies are fitted to {kind} times, not to measured ones")
        warnings.warn(
            f"{run.folder} holds {kind} times, not measured ones: the fit describes the model that made them.",
            stacklevel=2,
        )
    requests = run.requests[run.requests["policy"] != BATCH_SWEEP]  # step costs are fitted to those
    ops = machine.adjusted(run.ops[run.ops["request_id"].isin(requests["request_id"])].reset_index(drop=True))
    unclean = requests.loc[~requests["is_clean"].astype(bool), "request_id"]
    groups = groups_of(ops)
    is_clean = ~ops["request_id"].isin(unclean).to_numpy()
    if missing := sorted(set(groups.tolist()) - set(groups[is_clean].tolist())):
        # Better a calibration that says so than none: the report counts the disturbed requests.
        which = (
            "every request" if len(unclean) == len(requests) else f"every request with {', '.join(missing)} operations"
        )
        warnings.warn(f"{run.folder}: {which} was disturbed by other load; fitted all the same.", stacklevel=2)
        doubts.append(
            f"these latencies are fitted to {len(requests)} requests, of which {len(unclean)} ran beside other load: they "
            "support no claim"
        )
        unclean, is_clean = unclean.iloc[:0], np.ones(len(ops), bool)
    elif len(unclean):
        warnings.warn(
            f"{run.folder}: {len(unclean)} of {len(requests)} requests were disturbed and are left out.", stacklevel=2
        )
    ops, groups = ops[is_clean].reset_index(drop=True), groups[is_clean]
    rounds = machine.adjusted(run.rounds[~run.rounds["request_id"].isin(unclean)])
    if ops.empty:
        raise ValueError(f"{run.folder} holds no operation of an undisturbed request; record it again on free cores.")
    rng = np.random.default_rng(seed)
    ops = ops.assign(group=groups, seconds=ops["end_s"] - ops["start_s"], order=_order_in_round(ops, groups == "draft"))
    ops = ops.join(overlap_of(ops))
    fit = partial(_fit, rng=rng, num_resamples=num_resamples)
    drafting = _drafting_factor(ops)
    between = np.where((ops["actor"] == Actor.TARGET) & _is_drafting(ops), drafting, 1.0)
    rough = {group: fit(ops[groups == group], between[groups == group]) for group in GROUPS if group in groups}
    interference, cold_start, laws = Interference(), ColdStart(), dict(rough)
    before = ops.assign(wait_s=np.inf, num_before=0)
    if "draft" in rough and "verify" in rough:
        interference = Interference(target=_target_pace(ops, rough, between))
        before = _rounds_before(ops, rough["draft"], rough["verify"], between)
        laws["draft"], cold_start, pace = _fit_draft(before[groups == "draft"], rough["draft"], fit)
        interference = replace(interference, draft=pace)
    slowed = between / alone_share(ops, interference)
    fits = {
        group: law if group == "draft" else fit(ops[groups == group], slowed[groups == group])
        for group, law in laws.items()
    }
    waking_s = _waking_seconds(before, cold_start)
    return Calibration(
        fits=fits,
        round_check=check_rounds(fits, ops, rounds, rng, between, waking_s, interference),
        num_requests=int(ops["request_id"].nunique()),
        num_unclean=len(unclean),
        cold_start=cold_start,
        drafting=drafting,
        interference=interference,
        doubt="; ".join(doubts),
        drift_range=machine.range,
    )


def _fit(
    part: pd.DataFrame, slowed: NDArray[np.float64], *, rng: np.random.Generator, num_resamples: int
) -> LatencyFit:
    """The law of some operations of one group. slowed: how much longer each took than it would have alone."""
    is_host = part["group"].iloc[0] == "host"
    return fit_latency(
        part["seconds"] / slowed,
        part["num_tokens"],
        part["num_branches"],
        part["context_tokens"],
        part["request_id"],
        least=0 if is_host else 1,
        rng=rng,
        num_resamples=num_resamples,
    )


def _is_ahead(ops: pd.DataFrame) -> NDArray[np.bool_]:
    """(ops,) whether the draft did it while the target verified."""
    return np.asarray(ops["is_beside"] & (ops["actor"] == Actor.DRAFT), bool)


def _is_drafting(ops: pd.DataFrame) -> NDArray[np.bool_]:
    """(ops,) whether an operation's request runs a draft at all."""
    return np.asarray(ops["request_id"].isin(ops.loc[ops["group"] == "draft", "request_id"].unique()), bool)


def _drafting_factor(ops: pd.DataFrame) -> float:
    """How much longer a verification takes where a draft runs between verifications, at the widths that were measured both
    ways, 1 where there are none."""
    verify = ops[ops["group"] == "verify"]
    is_drafting = _is_drafting(ops)[verify.index]
    return _factor(verify[is_drafting & ~verify["is_beside"]], verify[~is_drafting]) or 1.0


def _target_pace(ops: pd.DataFrame, rough: Mapping[str, LatencyFit], between: NDArray[np.float64]) -> Pace:
    """See `fit_target_pace`."""
    is_ahead = _is_ahead(ops) & (ops["group"] == "draft").to_numpy()
    ahead = ops[is_ahead].assign(ahead_s=_means(rough["draft"], ops[is_ahead]))
    during = ahead.groupby(["request_id", "round"])["ahead_s"].sum()
    verify = ops[(ops["group"] == "verify").to_numpy() & _is_drafting(ops)].join(during, on=["request_id", "round"])
    verify = verify.assign(ahead_s=verify["ahead_s"].fillna(0.0))
    return fit_target_pace(verify, _means(rough["verify"], verify) * between[verify.index])


def _factor(slow: pd.DataFrame, fast: pd.DataFrame) -> float | None:
    """Mean seconds of the one over the other, never below 1, over the widths with enough of both; None without any."""
    pairs = pd.concat([part.groupby("num_tokens")["seconds"].agg(["mean", "size"]) for part in (slow, fast)], axis=1)
    table = pairs.dropna().to_numpy()
    table = table[(table[:, [1, 3]] >= MIN_OPS).all(axis=1)]
    if not len(table):
        return None
    weights = np.minimum(table[:, 1], table[:, 3])
    return max(1.0, float((table[:, 0] / table[:, 2]) @ weights / weights.sum()))


def _rounds_before(
    ops: pd.DataFrame, draft: LatencyFit, verify: LatencyFit, slowed: NDArray[np.float64]
) -> pd.DataFrame:
    """The operations with columns wait_s and num_before, of the round before each one's as `ColdStart` counts them.

    Before a request's first round lies the target's prefill, for which the draft waits: infinity.
    """
    group, is_ahead = ops["group"].to_numpy(), _is_ahead(ops)
    mean_s = np.where(group == "verify", _means(verify, ops) * slowed, 0.0)
    mean_s = np.where((group == "draft") & is_ahead, _means(draft, ops), mean_s)
    mean_s = np.where(((group == "read") & is_ahead) | (group == "predict"), ops["seconds"], mean_s)
    rounds = (
        pd.DataFrame(
            {
                "request_id": ops["request_id"],
                "round": ops["round"] + 1,
                "wait_s": np.where(ops["actor"] == Actor.TARGET, mean_s, -mean_s),
                "num_before": (ops["group"] == "draft").astype(int),
            }
        )
        .groupby(["request_id", "round"])
        .sum()
    )
    joined = ops.join(rounds, on=["request_id", "round"])
    is_first = joined["wait_s"].isna() | (joined["round"] <= 0)
    return joined.assign(
        wait_s=joined["wait_s"].clip(lower=0).mask(is_first, np.inf), num_before=joined["num_before"].mask(is_first, 0)
    )


def _fit_draft(
    draft: pd.DataFrame, rough: LatencyFit, fit: Callable[[pd.DataFrame, NDArray[np.float64]], LatencyFit]
) -> tuple[LatencyFit, ColdStart, Pace]:
    """Law of a warm forward working alone, cold start, and pace beside a verification, from all its forwards.

    rough: their law all together; fit: makes one. Without enough warm forwards the rough one stands, and what made it slow
    cannot be known.
    """
    is_ahead, is_warm = _is_ahead(draft), (draft["order"] >= NUM_COLD).to_numpy()
    is_single = ((draft["num_tokens"] == 1) & (draft["num_branches"] == 1)).to_numpy()
    if (is_single & is_warm).sum() < MIN_OPS:
        return rough, ColdStart(), Pace()

    def pace_of(means: NDArray[np.float64], chosen: NDArray[np.bool_], *, by_width: bool) -> Pace:
        ratios, beside = (seconds / means)[chosen & ~is_ahead], chosen & is_ahead
        if len(ratios) < MIN_OPS:
            return Pace()
        return fit_draft_pace(draft[beside], float(ratios.mean()), means[beside], by_width=by_width)

    def alone(pace: Pace) -> NDArray[np.float64]:
        """(draft forwards,) seconds that each would have taken alone."""
        return seconds * alone_share(draft, Interference(draft=pace))

    seconds, means = draft["seconds"].to_numpy(), _means(rough, draft)
    alone_s = alone(pace_of(means, is_single & is_warm, by_width=False))
    law = fit(draft[is_warm].assign(seconds=alone_s[is_warm]), np.ones(is_warm.sum()))
    means = _means(law, draft)
    centred = alone_s - means + means[is_single].mean()
    single = draft[is_single]
    cold_start = fit_cold_start(centred[is_single], single["order"], single["wait_s"], single["num_before"])
    waking_s = _waking_seconds(draft, cold_start)
    pace = pace_of(means + waking_s, is_single, by_width=True)
    warm_s = np.maximum(alone(pace) - waking_s, 0.1 * means)
    return fit(draft.assign(seconds=warm_s), np.ones(len(draft))), cold_start, pace


def _waking_seconds(before: pd.DataFrame, cold_start: ColdStart) -> NDArray[np.float64]:
    """(ops,) the cold start's part of each operation; before: as `_rounds_before` gives them."""
    share = cold_start.share_after(before["wait_s"], before["num_before"]) * cold_start.decay ** before["order"]
    waking_s: NDArray[np.float64] = np.where(before["group"] == "draft", cold_start.first_s * share, 0.0)
    return waking_s


def _means(fit: LatencyFit, ops: pd.DataFrame) -> NDArray[np.float64]:
    return np.asarray(fit.mean_array(ops["num_tokens"], ops["num_branches"], ops["context_tokens"]))


def _order_in_round(ops: pd.DataFrame, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """How many of the chosen operations of its round came before each of them; 0 for others."""
    order = np.zeros(len(ops), np.intp)
    part = ops[chosen].sort_values("start_s", kind="stable")
    order[part.index] = part.groupby(["request_id", "round"]).cumcount()
    return order
