"""SpecBranch's published tables under acceptance that is partly known beforehand: fitted to some numbers, judged on others.

Confidence spreads the acceptance of the draft's tokens, easy and hard stretches alternate, and H-RAD knows the class of the
coming window some of the time (`sim.decoding.informed`). At each published cell PEARL's speed-up gives the mean acceptance, so
that SpecBranch over PEARL is a prediction. One set of five parameters serves all cells; SpecBranch runs in the paper's form
with one setting throughout: window c - 1, so that its branches fit beside the verification, k = max(1, floor(4 (1 - q))),
epsilon 0.1, and a serial draft of the same window after a miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

from analysis.papers.operating_points import OperatingPoint, published_points
from analysis.papers.published import Effort
from sim.decoding.acceptance_models import sample_requests
from sim.decoding.informed import ClassConfusion, Informed, window_classes
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import Sweep, sweep
from traces.fits.acceptance.informed import InformedLaw
from traces.progress import Report, silent
from traces.schema import RequestTrace

Floats = NDArray[np.float64]
MAX_BRANCHES, EPSILON = 4, 0.1
FITTED_DATASET = "HumanEval"  # the cells of the other two are held back
ABLATED, ROLLED_BACK = ("Vicuna 68M & 13B", "GSM8K"), ("Vicuna 68M & 13B", "HumanEval")
EPSILONS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
# SpecBranch, arXiv:2506.01979: its ablation (speed-ups), its Table 4 (tokens/s as epsilon rises from 0.1, the last value of
# epsilon unknown), rollback rates of its Figure 1.
ABLATION = {"H-RAD": 1.95, "confidence only": 1.72}
TABLE_4 = {"H-RAD": (72.0, 67.0), "confidence only": (64.0, 49.0)}
ROLLBACK = {"fixed_length": 0.766, "pearl": 0.903, "specbranch": 0.396}
NATS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is fitted. confidence_sd, persistence: of `InformedLaw`. confidence_shift: of `Informed`. known, boldness: of
    `ClassConfusion.knowing`."""

    confidence_sd: float
    persistence: float
    confidence_shift: float
    known: float
    boldness: float

    @property
    def classes(self) -> ClassConfusion:
        """What H-RAD says of each true class."""
        return ClassConfusion.knowing(self.known, self.boldness)


# What `specbranch published --fit` gave.
FITTED = Knowledge(confidence_sd=4.52, persistence=0.498, confidence_shift=-3.18, known=0.99, boldness=0.741)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """SpecBranch's speed-up over PEARL's at one published cell."""

    pair: str
    dataset: str
    published: float
    predicted: float
    is_fitted: bool

    @property
    def error(self) -> float:
        """Relative to the published ratio."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One pair with H-RAD and with confidence only, over epsilon. speedups: name of ABLATION -> one value for each of
    EPSILONS. shares: of the true classes. nats, accuracy: of what H-RAD says. by_nats: speed-up at each of NATS, where the
    classes hold so many."""

    speedups: Mapping[str, tuple[float, ...]]
    shares: tuple[float, float, float]
    nats: float
    accuracy: float
    by_nats: tuple[float, ...]

    @property
    def errors(self) -> dict[str, float]:
        """Of the two ablation numbers, at EPSILON."""
        return {name: self.speedups[name][0] / published - 1 for name, published in ABLATION.items()}

    @property
    def gain(self) -> float:
        """H-RAD over confidence only at EPSILON; 72 / 64 in Table 4."""
        return self.speedups["H-RAD"][0] / self.speedups["confidence only"][0]

    @property
    def end(self) -> tuple[float, float]:
        """Epsilon at which confidence only has lost what it loses in Table 4, and what H-RAD keeps there; the largest
        epsilon where it never loses so much."""
        alone = np.array(self.speedups["confidence only"])
        first, last = TABLE_4["confidence only"]
        lost = np.maximum.accumulate(1 - alone / alone[0])
        epsilon = float(np.interp(1 - last / first, lost, EPSILONS))
        with_hrad = np.array(self.speedups["H-RAD"])
        return epsilon, float(np.interp(epsilon, EPSILONS, with_hrad) / with_hrad[0])


@dataclass(frozen=True, kw_only=True)
class InformedTables:
    """Everything that the model says of the paper. rollback: method -> definition -> rate."""

    knowledge: Knowledge
    ratios: tuple[Ratio, ...]
    ablation: Ablation
    rollback: Mapping[str, Mapping[str, float]]

    def mean_error(self, *, is_fitted: bool) -> float:
        """Mean absolute error of SpecBranch over PEARL, on the fitted or on the held-back cells."""
        return float(np.mean([abs(ratio.error) for ratio in self.ratios if ratio.is_fitted is is_fitted]))


def informed_tables(effort: Effort, knowledge: Knowledge = FITTED, *, progress: Report = silent) -> InformedTables:
    """The paper's cells, ablation, sweep of epsilon and rollback under fitted knowledge."""
    points = _points()
    ratios = []
    for point in points.values():
        ratios.append(_ratio(point, knowledge, effort))
        progress(len(ratios), len(points))
    return InformedTables(
        knowledge=knowledge,
        ratios=tuple(ratios),
        ablation=_ablation(points[ABLATED], knowledge, effort),
        rollback=_rollback(points[ROLLED_BACK], knowledge, effort),
    )


def fit_knowledge(effort: Effort, *, max_trials: int = 120, progress: Report = silent) -> Knowledge:
    """The knowledge that explains the cells of FITTED_DATASET and the shape of Table 4 best (least squares of relative
    errors, Nelder and Mead from FITTED). The other cells and the ablation's speed-ups are not looked at."""
    points = _points()
    fitted = [point for (_, dataset), point in points.items() if dataset == FITTED_DATASET]
    gain = TABLE_4["H-RAD"][0] / TABLE_4["confidence only"][0]
    kept = TABLE_4["H-RAD"][1] / TABLE_4["H-RAD"][0]
    trials = 0

    def loss(parameters: Floats) -> float:
        nonlocal trials
        knowledge = _from_free(parameters)
        errors = [_ratio(point, knowledge, effort).error for point in fitted]
        ablation = _ablation(points[ABLATED], knowledge, effort, by_nats=False)
        trials += 1
        progress(min(trials, max_trials), max_trials)
        return float(np.sum(np.square([*errors, ablation.gain / gain - 1, ablation.end[1] / kept - 1])))

    options = {"maxfev": max_trials, "xatol": 0.01, "fatol": 1e-5}
    best = minimize(loss, _to_free(FITTED), method="Nelder-Mead", options=options)
    return _from_free(best.x)


def _points() -> dict[tuple[str, str], OperatingPoint]:
    """The paper's cells by pair and data set."""
    return {(point.pair, point.dataset): point for point in published_points() if "specbranch" in point.reported}


def _to_free(knowledge: Knowledge) -> Floats:
    """Unbounded parameters."""
    chances = logit(np.array([knowledge.persistence, knowledge.known, knowledge.boldness]))
    return np.array([np.log(knowledge.confidence_sd), knowledge.confidence_shift, *chances])


def _from_free(parameters: Floats) -> Knowledge:
    persistence, known, boldness = (float(value) for value in expit(parameters[2:]))
    return Knowledge(
        confidence_sd=float(np.exp(parameters[0])),
        persistence=min(persistence, 0.98),
        confidence_shift=float(parameters[1]),
        known=known,
        boldness=boldness,
    )


def _paper_form(point: OperatingPoint, **settings: object) -> SpecBranch:
    form = SpecBranch(draft_length=_window(point), max_branches=MAX_BRANCHES, epsilon=EPSILON)
    return replace(form, **settings)  # type: ignore[arg-type]  # of SpecBranch's own fields


def _window(point: OperatingPoint) -> int:
    return max(1, round(point.cost_ratio) - 1)


def _latency(point: OperatingPoint) -> ConstantLatency:
    return ConstantLatency(draft_s=1 / point.cost_ratio, verify_s=1.0)


def _requests(
    point: OperatingPoint, law: InformedLaw, knowledge: Knowledge, effort: Effort, classes: ClassConfusion | None = None
) -> list[RequestTrace]:
    window = _window(point)
    model = Informed(
        law=law,
        window=window,
        classes=classes or knowledge.classes,
        confidence_shift=knowledge.confidence_shift,
        tail_depth=window + 2,
    )
    return sample_requests(model, effort.num_requests, effort.num_tokens, seed=effort.seed)


def _law_at(point: OperatingPoint, knowledge: Knowledge, effort: Effort) -> InformedLaw:
    """The mean acceptance at which PEARL, its window being c, reaches its published speed-up on these very requests."""
    law = InformedLaw(mean=0.0, confidence_sd=knowledge.confidence_sd, persistence=knowledge.persistence)
    pearl, latency = [Pearl(round(point.cost_ratio))], _latency(point)

    def too_fast(mean: float) -> float:
        model = Informed(law=replace(law, mean=mean), window=1, tail_depth=0)
        traces = sample_requests(model, effort.num_requests, effort.num_tokens, seed=effort.seed)
        return float(sweep(pearl, traces, latency).decode_tokens_per_s[0]) - point.reported["pearl"]

    spread = np.hypot(1.0, 0.6 * knowledge.confidence_sd)
    guess = float(logit(point.alpha)) * spread
    return replace(law, mean=float(brentq(too_fast, guess - 1.5 * spread, guess + 1.5 * spread, xtol=0.01)))


def _swept(point: OperatingPoint, policies: Sequence[Policy], traces: Sequence[RequestTrace]) -> Sweep:
    return sweep(policies, traces, _latency(point), record_rounds=True)


def _ratio(point: OperatingPoint, knowledge: Knowledge, effort: Effort) -> Ratio:
    traces = _requests(point, _law_at(point, knowledge, effort), knowledge, effort)
    pearl, full = _swept(point, [Pearl(round(point.cost_ratio)), _paper_form(point)], traces).decode_tokens_per_s
    return Ratio(
        pair=point.pair,
        dataset=point.dataset,
        published=point.reported["specbranch"] / point.reported["pearl"],
        predicted=float(full / pearl),
        is_fitted=point.dataset == FITTED_DATASET,
    )


def _ablation(point: OperatingPoint, knowledge: Knowledge, effort: Effort, *, by_nats: bool = True) -> Ablation:
    law = _law_at(point, knowledge, effort)
    traces = _requests(point, law, knowledge, effort)
    policies = [_paper_form(point, epsilon=epsilon, uses_hrad=uses) for uses in (True, False) for epsilon in EPSILONS]
    with_hrad, alone = _swept(point, policies, traces).decode_tokens_per_s.reshape(2, len(EPSILONS)).tolist()
    true = np.concatenate([window_classes(trace.ranks, _window(point)) for trace in traces])
    shares = np.bincount(true, minlength=3) / len(true)
    told = []
    for nats in NATS if by_nats else ():
        if nats <= ClassConfusion.knowing(1.0).nats(shares):
            requests = _requests(point, law, knowledge, effort, ClassConfusion.of_nats(nats, shares))
            told.append(float(_swept(point, [_paper_form(point)], requests).decode_tokens_per_s[0]))
    return Ablation(
        speedups={"H-RAD": tuple(with_hrad), "confidence only": tuple(alone)},
        shares=(float(shares[0]), float(shares[1]), float(shares[2])),
        nats=knowledge.classes.nats(shares),
        accuracy=float(shares @ np.diag(knowledge.classes.said)),
        by_nats=tuple(told),
    )


def _rollback(point: OperatingPoint, knowledge: Knowledge, effort: Effort) -> dict[str, dict[str, float]]:
    """Rates of three methods in every definition that we know."""
    length = round(point.cost_ratio)
    policies = {"fixed_length": FixedLength(length), "pearl": Pearl(length), "specbranch": _paper_form(point)}
    traces = _requests(point, _law_at(point, knowledge, effort), knowledge, effort)
    swept = _swept(point, list(policies.values()), traces)
    assert swept.rounds is not None
    siblings = np.maximum(swept.rounds.num_branches - 1, 0) * (1 + swept.rounds.num_branch_steps)
    of_policy = np.bincount(swept.rounds.lane // len(traces), weights=siblings, minlength=len(policies))
    rates = {}
    for index, method in enumerate(policies):
        counts, others = swept.summary(index), float(of_policy[index])
        rates[method] = {
            "rejected of submitted": counts.rejected_rate,
            "drafted and never emitted": counts.wasted_draft_rate,
            "the same without sibling branches": (counts.num_lost - others) / (counts.num_drafted - others),
            "target positions that emitted nothing": counts.wasted_target_rate,
        }
    return rates
