"""What may be planned: plain decoding, serial drafts of each length or by a table, and methods that overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from analysis.plan.advice import MIN_GAIN
from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import parse_policy, split_label
from sim.serving.rounds.base import RoundSource, ServerLoad
from sim.serving.rounds.length_rules import GoodputRule, Joining, LengthTable, MovingAverageRule
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds, LengthRule
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.rounds.run_lengths import RunLengths, drawn_runs
from sim.serving.settings import Placement
from traces.fits.step_costs import AcceptanceByPosition, StepCosts
from traces.schema import RequestTrace
from traces.workload import Workload

MAX_BATCH = 512
BY_LOAD = "K by load"
_NUM_DRAWN_TRACES, _DRAWN_TOKENS = 24, 400
_EQUAL = 1e-9  # losses closer than this are equal
Residual: TypeAlias = Callable[[int, int], float]  # (draft length, batch): log of measured over predicted goodput


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to decode, as the planner compares them.

    rule: of serial drafts, whose length is one for the batch; or policy: a method that overlaps. plan: its
    rounds on recorded requests; without one they are planned on drawn ones. name: for tables.
    """

    name: str
    rule: LengthRule | None = None
    policy: Policy | None = None
    plan: Plan | None = None
    placement: Placement = Placement.IN_TURN

    @property
    def drafts(self) -> bool:
        """Whether a draft is held in memory."""
        return self.rule is None or self.rule.max_length > 0


def plain() -> Method:
    """Decoding without speculation."""
    return Method(name="none", rule=FixedLengthRule(0))


def fixed(length: int) -> Method:
    """Serial drafts of one length at any load."""
    return Method(name=f"K = {length}", rule=FixedLengthRule(length))


def by_load(table: LengthTable) -> Method:
    """Serial drafts whose length follows the number of running requests."""
    return Method(name=BY_LOAD, rule=table)


def goodput(costs: StepCosts, acceptance: AcceptanceByPosition, max_length: int, joining: Joining | None) -> Method:
    """The length of the largest goodput in every step, for the batch and the contexts of that step (SmartSpec)."""
    return Method(name="goodput", rule=GoodputRule(costs, acceptance.marginal(max_length), joining=joining))


def moving_average(max_length: int) -> Method:
    """SGLang's adaptive lengths, by a moving average of what was accepted; those above max_length are left out."""
    rule = MovingAverageRule()
    candidates = ((first, tuple(k for k in lengths if k <= max_length)) for first, lengths in rule.candidates)
    return Method(name="moving average", rule=replace(rule, candidates=tuple(candidates)))


def overlapped(label: str, traces: Sequence[RequestTrace] = ()) -> Method:
    """A method of the catalog, its draft on a device of its own.

    traces: recorded requests that it runs on.

    Raises ValueError for an unknown method, and where the traces cannot answer its questions.
    """
    policy = parse_policy(label)
    return Method(
        name=split_label(label)[0],
        policy=policy,
        plan=Plan([policy], traces) if traces else None,
        placement=Placement.OWN_DEVICE,
    )


def sharing(method: Method) -> Method:
    """An overlapped method with one draft device for all replicas."""
    return replace(method, name=f"{method.name}, one draft", placement=Placement.SHARED_DRAFT)


def best_lengths(
    costs: StepCosts,
    acceptance: AcceptanceByPosition,
    max_length: int,
    mean_context: float,
    joining: Joining | None = None,
    *,
    residual: Residual | None = None,
) -> LengthTable:
    """The length of the largest goodput for every batch size at this mean context, as bands; the last one has no end.

    joining: prompts that are read in the same steps; None: none are. residual: what was measured beyond the costs.
    """
    if not max_length:
        return LengthTable.of((1, None, 0))
    rule = GoodputRule(costs, acceptance.marginal(max_length), joining=joining)
    batches, lengths = range(1, MAX_BATCH + 1), range(max_length + 1)
    loads = [ServerLoad.alike(batch, mean_context) for batch in batches]
    logs = np.log([[rule.goodput(load, length) for length in lengths] for load in loads])
    if residual is not None:
        logs += [[residual(length, batch) for length in lengths] for batch in batches]
    chosen = _never_longer(np.maximum(logs.max(axis=1, keepdims=True) - np.log1p(MIN_GAIN) - logs, 0.0))
    return LengthTable.merged([(b, b if b < MAX_BATCH else None, k) for b, k in zip(batches, chosen, strict=True)])


def _never_longer(losses: NDArray[np.float64]) -> list[int]:
    """(batches, lengths) of what is lost -> (batches,) lengths that never rise with the batch and lose the least in all.

    A jump of the step's cost must not lengthen drafts again, and a tie at small batches must not shorten them at larger ones.
    Batches weigh as their share of a logarithmic axis; of lengths that lose as little, the shortest. Dynamic programming from
    the largest batch: what is lost from there on by lengths of at most k.
    """
    lost, choices = np.zeros(losses.shape[1]), []
    for batch in range(len(losses), 0, -1):
        lost_by = losses[batch - 1] / batch + lost
        best, row = 0, []
        for length in range(len(lost_by)):
            best = length if lost_by[length] < lost_by[best] - _EQUAL else best
            row.append(best)
        lost = lost_by[row]
        choices.append(row)
    length, chosen = losses.shape[1] - 1, []
    for row in reversed(choices):
        length = row[length]
        chosen.append(length)
    return chosen


def source_of(
    method: Method, acceptance: AcceptanceByPosition, workload: Workload, seed: int
) -> Callable[[], RoundSource]:
    """Rounds of a workload; the same seed gives every method the same acceptances.

    A method of the catalog without a plan runs on drawn requests, whose acceptance is geometric with the mean of `acceptance`.
    """
    if method.rule is not None:
        table = _drawn(acceptance.conditional, workload.num_requests, int(workload.output_tokens.max()), seed)
        rule = method.rule
        return lambda: LengthRounds(table, rule)
    policy: Any = method.policy  # frozen, hence hashable, which the protocol cannot say
    assert policy is not None
    plan = method.plan or _planned_on_drawn(policy, acceptance, seed)
    return lambda: PlannedRounds(plan)


@lru_cache(maxsize=4)
def _planned_on_drawn(policy: Policy, acceptance: AcceptanceByPosition, seed: int) -> Plan:
    """Planned once for all rates."""
    return Plan([policy], drawn_traces(acceptance, seed))


@lru_cache(maxsize=4)
def _drawn(conditional: tuple[float, ...], num_requests: int, max_output_tokens: int, seed: int) -> RunLengths:
    """Drawn once for all methods and rates."""
    return drawn_runs(conditional, num_requests, max_output_tokens, np.random.default_rng([seed, 1]))


def drawn_traces(acceptance: AcceptanceByPosition, seed: int) -> list[RequestTrace]:
    """Requests of geometric acceptance, which is as high as the measured one in the mean over its positions."""
    rng = np.random.default_rng([seed, 2])
    model = Geometric(alpha=float(np.mean(acceptance.conditional)))
    return [model.sample(_DRAWN_TOKENS, request, rng) for request in range(_NUM_DRAWN_TRACES)]
