"""What may be planned: plain decoding, serial drafts of each length or by a table, and methods that overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

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
) -> LengthTable:
    """The length of the largest goodput for every batch size at this mean context, as bands; the last one has no end.

    joining: prompts that are read in the same steps; None: none are.
    """
    if not max_length:
        return LengthTable.of((1, None, 0))
    rule = GoodputRule(costs, acceptance.marginal(max_length), joining=joining)
    rows: list[tuple[int, int | None, int]] = []
    longest = max_length  # a jump of the step's cost must not lengthen drafts again
    for batch in range(1, MAX_BATCH + 1):
        length = rule.best_length(ServerLoad.alike(batch, mean_context), min_gain=MIN_GAIN)
        longest = min(longest, length)
        rows.append((batch, batch if batch < MAX_BATCH else None, longest))
    return LengthTable.merged(rows)


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
