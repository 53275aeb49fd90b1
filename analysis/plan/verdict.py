"""A plan in two sentences, and as one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.plan.dialects.rows import rows_by_batch
from analysis.plan.planning import LEVEL, MethodPlan, PlanResult
from sim.decoding.policies.catalog import label_of
from sim.serving.rounds.length_rules import LengthTable
from sim.serving.settings import Placement

_MAX_SURE = 0.99  # of what a simulation of a model may claim


def length_sentence(table: LengthTable) -> str:
    """When to speculate, by the running requests of a replica.

    >>> length_sentence(LengthTable.of((1, 7, 5), (8, 60, 3), (61, None, 0)))
    'Speculate with K = 5 up to 7 running requests and K = 3 up to 60, not above.'
    >>> length_sentence(LengthTable.of((1, None, 0)))
    'Do not speculate: plain decoding is the faster one at every load.'
    """
    bands = [(band.last, band.draft_length) for band in table.bands]
    if all(length == 0 for _, length in bands):
        return "Do not speculate: plain decoding is the faster one at every load."
    parts: list[str] = []
    for last, length in bands:
        if not length:
            break
        if last is None:
            parts.append(f"K = {length} at any load" if not parts else f"K = {length} above")
        else:
            parts.append(f"K = {length} up to {last}" + (" running requests" if not parts else ""))
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"Speculate with {text}" + (", not above." if bands[-1][1] == 0 else ".")


def capacity_sentence(plan: PlanResult) -> str:
    """What that is worth: devices for this traffic, or rates of a replica, and how sure it is."""
    plain, best = plan.plain, plan.best
    base, top = plain.capacity, best.capacity
    gain = top.mean / base.mean - 1 if base.mean else math.inf
    sure = min(top.chance_above(base), _MAX_SURE)
    count, plain_count = plan.num_devices(best), plan.num_devices(plain)
    rates = f"{top.mean:.3g} requests/s a replica instead of {base.mean:.3g}"
    if best is plain or gain < LEVEL:
        others = [each.capacity.mean for each in plan.finalists if each is not plain]
        held = f"a replica holds {base.mean:.3g} requests/s without it" + (
            f" and {max(others):.3g} with it" if others else ""
        )
        return f"For capacity it hardly matters: outputs are {plan.output_share:.0%} of all tokens, and {held}."
    name, sureness = best.method.name, f"{gain:+.0%}, sure to {sure:.0%}"
    if plan.devices_per_replica(best) > plan.devices_per_replica(plain):
        shares = best.method.placement is Placement.SHARED_DRAFT
        name += " device for all replicas," if shares else ", with a device for each draft,"
    if plain_count is None:
        return f"{name}: {_devices(count, plan)}; without speculation no number of replicas that was tried holds it."
    if count is not None and count < plain_count:
        return f"{name}: {count} {plan.machine.name} instead of {plain_count}; {rates} ({sureness})."
    return f"{name} holds {rates} ({sureness}); for this traffic {_devices(count, plan)} either way."


def _devices(count: int | None, plan: PlanResult) -> str:
    return "more replicas than were tried" if count is None else f"{count} {plan.machine.name}"


def rows(plan: PlanResult) -> list[dict[str, Any]]:
    """One row a method, for tables and files: seconds, rates a second, shares."""
    return [_row(plan, each) for each in plan.methods]


def _row(plan: PlanResult, each: MethodPlan) -> dict[str, Any]:
    low, high = each.capacity.interval
    row: dict[str, Any] = {
        "method": each.method.name,
        "policy": "" if each.method.policy is None else label_of(each.method.policy),
        "placement": each.method.placement.value,
        "requests_per_s_per_replica": each.capacity.mean,
        "requests_per_s_low": low if len(each.capacity.rates) > 1 else None,
        "requests_per_s_high": high if len(each.capacity.rates) > 1 else None,
        "num_replications": len(each.capacity.rates),
        "num_replicas": each.num_replicas,
        "num_devices": plan.num_devices(each),
    }
    run = each.at_traffic
    if run is None:
        return row
    summary = run.summary
    row |= {
        "attainment": summary.attainment,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "mean_ttft_s": summary.mean_ttft_s,
        "p50_ttft_s": summary.p50_ttft_s,
        "p90_ttft_s": summary.p90_ttft_s,
        "p99_ttft_s": summary.p99_ttft_s,
        "mean_tpot_s": summary.mean_tpot_s,
        "p50_tpot_s": summary.p50_tpot_s,
        "p90_tpot_s": summary.p90_tpot_s,
        "p99_tpot_s": summary.p99_tpot_s,
        "p50_itl_s": run.itl_s[0],
        "p99_itl_s": run.itl_s[2],
        "acceptance_length": run.acceptance_length,
        "mean_running": run.mean_running,
        "kv_share": run.kv_share,
        "num_preemptions": run.num_preemptions,
        "draft_share": run.draft_share,
        "cost_per_million_tokens": cost_per_million_tokens(plan, each),
        "joules_per_token": None
        if plan.machine.watts is None
        else plan.machine.watts * plan.devices_per_replica(each) * run.busy_s_per_token,
    }
    return row


def cost_per_million_tokens(plan: PlanResult, each: MethodPlan) -> float | None:
    """Price of all devices of the method over the output tokens of the traffic; None without a price or a size."""
    price, count = plan.machine.price_per_hour, plan.num_devices(each)
    if price is None or count is None:
        return None
    return 1e6 * price * count / 3600 / (plan.traffic.rate * plan.traffic.mean_output_tokens)


def summary_of(plan: PlanResult) -> Mapping[str, Any]:
    """What `summary.json` holds under `plan`."""
    best = plan.best
    return {
        "verdict": [length_sentence(plan.table), capacity_sentence(plan)],
        "traffic": plan.traffic.source,
        "requests_per_s": plan.traffic.rate,
        "objectives": plan.settings.objectives.label(),
        "attainment": plan.settings.attainment,
        "best_method": best.method.name,
        "num_replicas": best.num_replicas,
        "num_devices": plan.num_devices(best),
        "mean_context_tokens": plan.mean_context,
        "num_speculative_tokens_per_batch_size": rows_by_batch(plan.table, plan.settings.server.max_num_seqs),
    }
