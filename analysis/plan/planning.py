"""A plan: which method holds the most traffic a replica, how many replicas hold it all, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.explore.work.scale_out import Workers, run_tasks
from analysis.plan.capacity import COARSE, NARROW_STEP, WIDE_STEP, Capacity, highest_factor
from analysis.plan.machines import Machine
from analysis.plan.methods import (
    BY_LOAD,
    Method,
    best_lengths,
    by_load,
    fixed,
    goodput,
    moving_average,
    overlapped,
    plain,
    sharing,
)
from analysis.plan.runs import RunResult, run_method
from analysis.plan.traffic import Traffic
from sim.serving.cluster import Router
from sim.serving.rounds.length_rules import Joining, LengthTable
from sim.serving.settings import Placement, Server
from traces.fits.step_costs import AcceptanceByPosition
from traces.metrics.serving import Objectives
from traces.schema import RequestTrace
from traces.workload import Workload

_LONELY = 1e-4  # of the rate, so that requests hardly meet
_NUM_LONELY = 60
_MIN_STAYS, _MAX_LONGER = 4.0, 8  # arrivals last so many stays of a request; runs are made so many times longer
LEVEL = 0.02  # capacities that differ by less are level
RULES = ("goodput", "moving_average")
_MAX_SHARING = 4  # more replicas than the rate asks for that are tried with one draft; more do not relieve it
_MAX_STRETCH = 12  # runs' worth of requests, for a cluster


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is asked.

    attainment: share of requests that must meet every objective. max_length: longest serial draft. policies: labels of methods
    that overlap, on a draft device of their own; shares_draft: and on one for all replicas, too. rules: of RULES, serial
    lengths that are chosen in every step. num_requests: of each simulated run, num_replications of them at least;
    more are made until the best method's rate is known to `precision` (half-width of its 95% interval), max_replications at
    most. max_replicas: more are not tried.
    """

    objectives: Objectives
    attainment: float = 0.95
    max_length: int = 5
    policies: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    shares_draft: bool = False
    num_requests: int = 1200
    num_replications: int = 3
    max_replications: int = 6
    precision: float = 0.03
    max_replicas: int = 256
    server: Server = field(default_factory=Server)
    router: Router = Router.LEAST_OUTSTANDING_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.attainment <= 1:
            raise ValueError(
                f"attainment must lie in (0, 1], but got {self.attainment}; it is a share of the requests."
            )
        if not 0 <= self.max_length <= 32:
            raise ValueError(f"max_length must lie between 0 and 32 draft tokens, but got {self.max_length}.")
        if unknown := [name for name in self.rules if name not in RULES]:
            raise ValueError(f"unknown rule of lengths {unknown[0]!r}; known are {', '.join(RULES)}.")
        if self.rules and not self.max_length:
            raise ValueError("rules of lengths need drafts of at least 1 token; raise max_length.")
        if self.shares_draft and not self.policies:
            raise ValueError("a draft device is shared by methods that overlap; name at least one policy.")
        if self.num_requests < 100:
            raise ValueError(
                f"a run needs at least 100 requests for a share of them to say much, but got {self.num_requests}."
            )
        if not 2 <= self.num_replications <= self.max_replications:
            raise ValueError(
                f"num_replications must be at least 2 and at most max_replications ({self.max_replications}), but got "
                f"{self.num_replications}."
            )
        if not 0 < self.precision < 1:
            raise ValueError(f"precision must lie in (0, 1), but got {self.precision}.")
        if self.max_replicas < 1:
            raise ValueError(f"max_replicas must be at least 1, but got {self.max_replicas}.")


@dataclass(frozen=True, kw_only=True)
class MethodPlan:
    """One method. num_replicas: fewest that hold the traffic; None where not even max_replicas do, or it was not tried.
    at_traffic: a run of so many replicas under the traffic, of a recorded one under its busiest stretch.
    """

    method: Method
    capacity: Capacity
    num_replicas: int | None = None
    at_traffic: RunResult | None = None


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """methods: all of them, the best of each kind planned to the end. table: draft length by load. mean_context: tokens of
    a running request in the cache, in the mean. joining: prompts and outputs, in the mean. curves: (method, rate, goodput,
    is_settled) of one replica, a second.
    """

    traffic: Traffic
    machine: Machine
    settings: PlanSettings
    acceptance: AcceptanceByPosition
    table: LengthTable
    mean_context: float
    joining: Joining
    methods: tuple[MethodPlan, ...]
    curves: tuple[tuple[str, float, float, bool], ...]

    @property
    def finalists(self) -> list[MethodPlan]:
        """Methods that were planned to the end."""
        return [plan for plan in self.methods if len(plan.capacity.rates) > 1]

    @property
    def output_share(self) -> float:
        """Output tokens over all tokens of the traffic."""
        sample = self.traffic.sample(self.settings.num_requests, self.settings.seed)
        outputs = int(sample.output_tokens.sum())
        return outputs / (outputs + int(sample.prompt_tokens.sum()))

    @property
    def plain(self) -> MethodPlan:
        """Decoding without speculation."""
        return self.methods[0]

    @property
    def best(self) -> MethodPlan:
        """The fewest devices; of these the highest rate a device, or what follows the load where that is level with it."""
        fewest = min(self.num_devices(plan) or math.inf for plan in self.finalists)
        least = [plan for plan in self.finalists if (self.num_devices(plan) or math.inf) == fewest]
        top = max(least, key=self.rate_per_device)
        level = [plan for plan in least if self.rate_per_device(plan) >= (1 - LEVEL) * self.rate_per_device(top)]
        return next((plan for plan in level if plan.method.name == BY_LOAD), top)

    def num_devices(self, plan: MethodPlan) -> int | None:
        """Devices of all replicas, those of drafts included."""
        if plan.num_replicas is None:
            return None
        if plan.method.placement is Placement.SHARED_DRAFT:
            return plan.num_replicas * self.machine.num_devices + 1
        return plan.num_replicas * round(self.devices_per_replica(plan))

    def devices_per_replica(self, plan: MethodPlan) -> float:
        """The target's, and one for a draft that does not live on them, or a replica's share of it."""
        drafts: dict[Placement, float] = {
            Placement.IN_TURN: 0,
            Placement.OWN_DEVICE: 1,
            Placement.SHARED_DRAFT: 1 / (plan.num_replicas or 1),
        }
        return self.machine.num_devices + drafts[plan.method.placement]

    def rate_per_device(self, plan: MethodPlan) -> float:
        """Requests a second that a replica holds, over its devices."""
        return plan.capacity.mean / self.devices_per_replica(plan)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inputs:
    """What every task needs."""

    traffic: Traffic
    machine: Machine
    acceptance: AcceptanceByPosition
    settings: PlanSettings

    def run(self, method: Method, workload: Workload, seed: int, num_replicas: int = 1) -> RunResult:
        settings = self.settings
        return run_method(
            method,
            workload,
            self.machine,
            settings.server,
            self.acceptance,
            settings.objectives,
            seed=seed,
            num_replicas=num_replicas,
            router=settings.router,
        )

    def holds(self, result: RunResult) -> bool:
        """Whether a run kept the objectives, and its queue did not grow without end."""
        return result.summary.is_settled and result.summary.attainment >= self.settings.attainment


def make_plan(
    traffic: Traffic,
    machine: Machine,
    acceptance: AcceptanceByPosition,
    settings: PlanSettings,
    *,
    traces: Sequence[RequestTrace] = (),
    workers: Workers | None = None,
) -> PlanResult:
    """Plan capacity for a traffic. traces: recorded requests for the methods that overlap.

    Raises ValueError where no method meets the objectives even for a request alone, and says which objective and by how
    much; and for requests that do not fit the memory. Equal arguments give equal results, whatever the workers.
    """
    workers = workers or Workers()
    whole = traffic.sample(settings.num_requests, settings.seed)
    mean_context = _mean_context(whole)
    joining = Joining(float(whole.prompt_tokens.mean()), float(whole.output_tokens.mean()))
    table = best_lengths(machine.costs, acceptance, settings.max_length, mean_context, joining)
    methods = [plain(), *(fixed(length) for length in range(1, settings.max_length + 1))]
    if len(table.bands) > 1:
        methods.append(by_load(table))
    if "goodput" in settings.rules:
        methods.append(goodput(machine.costs, acceptance, settings.max_length, joining))
    if "moving_average" in settings.rules:
        methods.append(moving_average(settings.max_length))
    for method in [overlapped(label, traces) for label in settings.policies]:
        methods += [method, sharing(method)] if settings.shares_draft else [method]
    inputs = _Inputs(traffic=traffic, machine=machine, acceptance=acceptance, settings=settings)
    _check_objectives(inputs, methods)

    coarse = [(inputs, method, settings.seed, None) for method in methods]
    screened = [rate for _, rate in sorted(run_tasks(_highest_rate, coarse, workers))]
    finalists = _finalists(methods, screened)
    rates: dict[int, list[float]] = {index: [] for index in finalists}
    while len(rates[0]) < settings.max_replications:
        done = len(rates[0])
        if done >= settings.num_replications:
            best = max(finalists, key=lambda index: sum(rates[index]))
            if Capacity(rates=tuple(rates[best])).relative_width <= settings.precision:
                break
        tasks = [(inputs, methods[index], settings.seed + done, screened[index]) for index in finalists]
        for place, rate in run_tasks(_highest_rate, tasks, workers):
            rates[finalists[place]].append(rate)

    capacities = [Capacity(rates=tuple(rates.get(index, [rate]))) for index, rate in enumerate(screened)]
    sized = dict(
        run_tasks(_fewest_replicas, [(inputs, methods[index], capacities[index]) for index in finalists], workers)
    )
    plans = [MethodPlan(method=method, capacity=capacity) for method, capacity in zip(methods, capacities, strict=True)]
    for place, (num_replicas, at_traffic) in sized.items():
        index = finalists[place]
        plans[index] = MethodPlan(
            method=methods[index], capacity=capacities[index], num_replicas=num_replicas, at_traffic=at_traffic
        )
    top = max(capacities[index].mean for index in finalists)
    points = [
        (inputs, methods[index], top * share) for index in finalists for share in (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
    ]
    curves = sorted(result for _, result in run_tasks(_point, points, workers))
    return PlanResult(
        traffic=traffic,
        machine=machine,
        settings=settings,
        acceptance=acceptance,
        table=table,
        mean_context=mean_context,
        joining=joining,
        methods=tuple(plans),
        curves=tuple(curves),
    )


def _mean_context(workload: Workload) -> float:
    """Tokens in the cache of a running request, in the mean over the tokens it emits."""
    outputs = workload.output_tokens.astype(float)
    return float(((workload.prompt_tokens + outputs / 2) * outputs).sum() / outputs.sum())


def _finalists(methods: Sequence[Method], rates: Sequence[float]) -> list[int]:
    """Plain decoding, the best fixed length, the table, and what overlaps."""
    fixed_lengths = [index for index in range(1, len(methods)) if methods[index].name.startswith("K = ")]
    best_fixed = [max(fixed_lengths, key=lambda index: rates[index])] if fixed_lengths else []
    others = [index for index in range(1, len(methods)) if index not in fixed_lengths]
    return [0, *best_fixed, *others]


def _check_objectives(inputs: _Inputs, methods: Sequence[Method]) -> None:
    """Refuse objectives that not even a request alone would meet, whatever the method."""
    settings = inputs.settings
    results = {}
    for method in methods:
        workload = inputs.traffic.sample(_NUM_LONELY, settings.seed, rate_factor=_LONELY)
        results[method.name] = inputs.run(method, workload, settings.seed)
    if any(result.summary.attainment >= settings.attainment for result in results.values()):
        return
    best = max(results, key=lambda name: results[name].summary.attainment)
    summary, each = results[best].summary, results[best].meets_each
    worst = min(each, key=lambda name: each[name])
    name = worst.removesuffix("_s")
    alone_ms = 1e3 * {"ttft": summary.p99_ttft_s, "tpot": summary.p99_tpot_s, "e2el": summary.mean_e2el_s}[name]
    raise ValueError(
        f"{name}:{1e3 * getattr(settings.objectives, worst):g} cannot be met on {inputs.machine.name}: even alone only "
        f"{each[worst]:.0%} of the requests do (with {best}, whose {'mean' if name == 'e2el' else 'p99'} is "
        f"{alone_ms:.0f} ms); relax it, give more or faster devices, or leave out long requests."
    )


def _highest_rate(inputs: _Inputs, method: Method, seed: int, known: float | None) -> float:
    """Requests a second that one replica holds; about, unless it is known about already.

    A run in which most requests are there at once says nothing of a rate that lasts: then twice as many requests are sent.
    """
    if known == 0:
        return 0.0
    num_requests = inputs.settings.num_requests
    while True:
        rate, num_stays = _rate_of_runs(inputs, method, seed, known, num_requests)
        workload = inputs.traffic.sample(num_requests, seed)
        if num_stays >= _MIN_STAYS or num_requests >= _MAX_LONGER * inputs.settings.num_requests:
            return rate
        if workload.num_requests < num_requests:  # a recorded traffic has no more
            return rate
        num_requests *= 2


def _rate_of_runs(
    inputs: _Inputs, method: Method, seed: int, known: float | None, num_requests: int
) -> tuple[float, float]:
    """The highest rate that runs of so many requests hold, and how often a request's stay fits into the arrivals there."""
    num_stays = 0.0

    def holds(rate: float) -> bool:
        nonlocal num_stays
        workload = inputs.traffic.sample(num_requests, seed, rate_factor=rate / inputs.traffic.rate)
        result = inputs.run(method, workload, seed)
        stays = float(workload.arrival_s[-1]) / result.summary.mean_e2el_s
        is_held = stays > 1 and inputs.holds(result)
        if is_held:
            num_stays = stays
        return is_held

    if known is None:
        return highest_factor(holds, _guess(inputs), step=WIDE_STEP, precision=COARSE), num_stays
    return highest_factor(holds, known, step=NARROW_STEP), num_stays


def _guess(inputs: _Inputs) -> float:
    """Requests a second of a plain batch of 32, about."""
    costs, workload = inputs.machine.costs, inputs.traffic.sample(inputs.settings.num_requests, inputs.settings.seed)
    batch = min(32, inputs.settings.server.max_num_seqs)
    step_s = costs.target_s(batch, round(batch * _mean_context(workload)), batch)
    return batch / (step_s * float(workload.output_tokens.mean()))


def _fewest_replicas(inputs: _Inputs, method: Method, capacity: Capacity) -> tuple[int | None, RunResult | None]:
    """Replicas behind one router that hold the whole traffic: as the rate says, then one less or more by simulation."""
    settings, traffic = inputs.settings, inputs.traffic
    if not capacity.mean:
        return None, None
    count = max(1, math.ceil(traffic.rate / capacity.mean))
    if count > settings.max_replicas:
        return None, None
    workload = traffic.busiest(settings.num_requests * min(count, _MAX_STRETCH), settings.seed)
    results: dict[int, RunResult] = {}

    def holds(number: int) -> bool:
        results[number] = inputs.run(method, workload, settings.seed, number)
        return inputs.holds(results[number])

    if holds(count):
        while count > 1 and holds(count - 1):
            count -= 1
        return count, results[count]
    is_shared = method.placement is Placement.SHARED_DRAFT
    for _ in range(_MAX_SHARING if is_shared else settings.max_replicas):
        if count == settings.max_replicas:
            break
        count += 1
        if holds(count):
            return count, results[count]
    return None, None


def _point(inputs: _Inputs, method: Method, rate: float) -> tuple[str, float, float, bool]:
    """Goodput of one replica at one rate, for the figure."""
    settings = inputs.settings
    workload = inputs.traffic.sample(settings.num_requests, settings.seed, rate_factor=rate / inputs.traffic.rate)
    summary = inputs.run(method, workload, settings.seed).summary
    return (
        method.name,
        rate,
        rate * summary.attainment if summary.is_settled else min(rate, summary.goodput_per_s),
        summary.is_settled,
    )
