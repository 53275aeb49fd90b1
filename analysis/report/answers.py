"""The verdict of an arm, from the best source that it has: a comparison, a validation, measured speeds, an exploration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from analysis import verdict
from analysis.explore.flips import Prices, vary_prices
from analysis.report.material import Arm, Explored, Plan, read_arms
from analysis.verdict import PROBE, Contender, Verdict, label_for, method_of, name_of
from executor.models.names import check_drafter
from executor.recording.settings import draft_of
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import check_answers
from sim.latency.placement import Placement
from traces.metrics.speeds import doubt_of
from traces.schema import RequestTrace, num_tokens

NUM_CONTENDERS = 12
MAX_TOKENS = 6000  # recorded ones that prices are moved on: a flip is no matter of the third digit


class Answers:
    """What an arm's sections share: computed once, when first asked for."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    @cached_property
    def prices(self) -> dict[float, Prices]:
        """The contenders at other prices, by temperature; the fastest one is the chosen one."""
        arm, found = self.arm, {}
        for temperature in arm.temperatures if arm.latency is not None else ():
            contenders = contenders_of(arm, temperature)
            if len(contenders) > 1:
                assert arm.latency is not None
                traces = _some([trace for trace in arm.traces if trace.temperature == temperature])
                found[temperature] = vary_prices(traces, arm.latency, contenders, contenders[0])
        return found

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One for each temperature, scenario of an exploration, or plan."""
        if not self.arm.runs:
            return [_of_plan(plan) for plan in self.arm.plans]
        changes = {temperature: change_sentence(prices) for temperature, prices in self.prices.items()}
        return verdicts_on(self.arm, changes)


def verdicts_of(folders: Sequence[Path]) -> list[Verdict]:
    """Of the last of these folders; the others are what it came from."""
    return Answers(read_arms(folders)[-1]).verdicts


def _of_plan(plan: Plan) -> Verdict:
    """What the plan says, and that it is to be checked."""
    told = plan.summary.get("verdict") or ["The plan holds no verdict."]
    rows = plan.methods[plan.methods.method == plan.summary.get("best_method")]
    sure = ""
    if len(rows) and (low := rows.iloc[0].get("requests_per_s_low")) is not None and low == low:
        high = rows.iloc[0]["requests_per_s_high"]
        sure = f"A replica holds {low:.3g} to {high:.3g} requests a second (95%, over replications of a simulation)."
    return Verdict(
        where="",
        answer=" ".join(map(str, told)),
        how_sure=sure,
        would_change="Acceptance and step costs are those given; measured ones of your server may differ.",
        next_step="a load test of one replica, then specbranch plan --check on its table.",
    )


def _some(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    """Traces evenly from all of them, with about MAX_TOKENS tokens at most."""
    step = max(1, round(num_tokens(traces) / MAX_TOKENS))
    return list(traces[::step])


def change_sentence(prices: Prices) -> str:
    """What would change the answer, in a sentence; the nearest two changes of price."""
    flips = sorted(prices.flips(), key=lambda flip: flip.distance)
    return " ".join(flip.sentence(name_of) for flip in flips[:2])


def doubts_of(arm: Arm) -> list[str]:
    """What speaks against an arm's times or its completeness, in sentences without a full stop."""
    doubts = [
        f"{run.folder.name} was cut short: only what was written before that is in this report"
        for run in arm.runs
        if not run.is_complete
    ]
    if arm.validation and not arm.validation.is_claim:
        doubts.append(arm.validation.note)
    elif arm.comparison:
        doubts += dict.fromkeys(row.note for row in arm.comparison if row.note)
    else:
        speeds = arm.speeds
        doubts.append(doubt_of(sum(speed.num_unclean for speed in speeds), sum(speed.num_requests for speed in speeds)))
    if arm.explored:
        doubts.append(str(arm.explored.summary.get("doubt") or ""))
    if arm.validation and arm.validation.reason:
        doubts.append(arm.validation.reason)
    single = [part.strip() for text in doubts if text for part in text.split("; ")]
    return list(dict.fromkeys(single))


def verdicts_on(arm: Arm, changes: Mapping[float, str]) -> list[Verdict]:
    """Of an arm's runs. changes: what would change each answer, by temperature; the answers themselves need none."""
    if arm.comparison:
        return verdict.of_comparison(arm.comparison, would_change=changes, next_step=_next_step(arm))
    if arm.validation:
        return verdict.of_validation(arm.validation, would_change=changes, next_step=_next_step(arm))
    if len({method_of(speed.policy) for speed in arm.speeds} - {PROBE}) > 1:
        return verdict.of_speeds(arm.speeds, is_measured=True, would_change=changes, next_step=_next_step(arm))
    if arm.explored:
        return [_of_scenario(arm, arm.explored, scenario, changes) for scenario in _scenarios(arm.explored)]
    return verdict.of_speeds(arm.speeds, is_measured=True, next_step=_next_step(arm)) if arm.speeds else []


def _scenarios(explored: Explored) -> list[str]:
    return list(dict.fromkeys(explored.table.scenario))


def _of_scenario(arm: Arm, explored: Explored, scenario: str, changes: Mapping[float, str]) -> Verdict:
    rows = explored.table[explored.table.scenario == scenario]
    contenders = [
        Contender(
            policy=str(row["policy"]),
            temperature=float(row["temperature"]),
            speed=float(row["tokens_per_s"]),
            speedup=float(row["speedup"]),
            interval=(float(row["speedup_low"]), float(row["speedup_high"])),
        )
        for row in rows.to_dict("records")
    ]
    found = [each for each in explored.summary.get("best_by_scenario", ()) if each.get("scenario") == scenario]
    doubt = str(explored.summary.get("doubt") or "")  # then no method is named that could be the fastest
    is_sure = found and not doubt
    sure = f"It is the fastest in {found[0]['probability_best']:.0%} of resamples of the prompts." if is_sure else ""
    # Prices are moved as calibrated, on two devices: other scenarios have other answers.
    is_plain = scenario == f"T={contenders[0].temperature:g} {Placement().label}"
    return verdict.decide(
        scenario,
        contenders,
        doubt=doubt,
        is_measured=False,
        how_sure=sure,
        would_change=changes.get(contenders[0].temperature, "") if is_plain else "",
        next_step=_next_step(arm, max(contenders, key=lambda each: each.speed).policy),
    )


def _next_step(arm: Arm, policy: str = "") -> str:
    """policy: the one that should be measured, of an exploration."""
    if doubts_of(arm):
        return "the same again, on a machine that does nothing else."
    if arm.validation or arm.comparison:
        return "a load test of your server with this setting, held against specbranch plan."
    source = arm.recorded.folder if arm.recorded else "RUN"
    if arm.explored:
        return f"specbranch validate --run {source} --output-dir NEW --policy {label_for(policy)}"
    return f"specbranch explore --run {source} --output-dir NEW"


def contenders_of(arm: Arm, temperature: float) -> list[Policy]:
    """The policies that an arm ran or explored at a temperature, the fastest first, as far as its traces can answer them."""
    labels: dict[str, float] = {}
    for check in arm.validation.policies if arm.validation else ():
        if check.temperature == temperature:
            labels[check.policy] = check.speed
    for row in arm.comparison:
        if row.temperature == temperature:
            labels[row.policy] = row.adjusted_tokens_per_s or row.tokens_per_s
    for speed in arm.speeds:
        if speed.temperature == temperature and method_of(speed.policy) != PROBE:
            labels.setdefault(speed.policy, speed.tokens_per_s)
    measured = sorted(labels, key=lambda label: -labels[label])
    explored: list[str] = []
    if arm.explored is not None:
        table = arm.explored.table
        here = table[table.temperature == temperature].sort_values("tokens_per_s", ascending=False)
        explored = [str(policy) for policy in here.policy.head(NUM_CONTENDERS)]
    policies = (_answerable(arm, label, temperature) for label in dict.fromkeys([*measured, *explored]))
    return list(dict.fromkeys(policy for policy in policies if policy is not None))


def _answerable(arm: Arm, label: str, temperature: float) -> Policy | None:
    """The policy, where the arm's traces hold what it asks for."""
    assert arm.recorded is not None
    try:
        policy = parse_policy(label)
        check_drafter(policy, draft_of(arm.recorded.config))
        for trace in arm.traces:
            if trace.temperature == temperature:
                check_answers(trace, policy.needs)
    except ValueError:
        return None
    return policy
