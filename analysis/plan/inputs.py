"""What a plan is made of, from what a user types: acceptance, and costs of a replica."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.plan.machines import Machine, machine_of
from analysis.plan.methods import drawn_traces
from analysis.plan.numbers import acceptance_from, costs_from
from analysis.plan.planning import PlanSettings
from analysis.plan.traffic import DrawnTraffic, Traffic, read_recorded
from analysis.study.planned import Planned
from analysis.tuning.auto import check_labels, resolution_lines, resolve
from sim.decoding.policies.catalog import label_of
from sim.decoding.replay import next_mismatches
from sim.serving.batch_latency import BatchLatency
from sim.serving.workload.arrivals import GammaArrivals
from sim.serving.workload.lengths import LognormalLengths
from traces.fits.step_costs import AcceptanceByPosition
from traces.folder.run import read_run
from traces.folder.writer import check_new_folder
from traces.schema import RequestTrace


def new_folder(path: Path) -> None:
    """Make the folder of the results. Raises an error where something is there already."""
    check_new_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def traffic_of(
    path: Path | None,
    *,
    request_rate: float | None,
    burstiness: float,
    prompt_tokens: float,
    output_tokens: float,
    length_cv: float,
) -> Traffic:
    """From a file, whose rate may be changed, or from a rate and means. Raises ValueError where neither is given."""
    if path is not None:
        return read_recorded(path, request_rate)
    if request_rate is None:
        raise ValueError(
            "no traffic to plan for; give --traffic FILE, or --request-rate with --prompt-tokens and so on."
        )
    return DrawnTraffic(
        arrivals=GammaArrivals(request_rate, burstiness),
        lengths=LognormalLengths(
            mean_prompt_tokens=prompt_tokens, mean_output_tokens=output_tokens, prompt_cv=length_cv, output_cv=length_cv
        ),
    )


def acceptance_of(text: str, run_dir: Path | None, max_length: int) -> tuple[AcceptanceByPosition, list[RequestTrace]]:
    """From marginal rates as engines print them (fractions; one alone holds at every position), from the acceptance.json of
    `specbranch import`, or from a recorded run.

    Raises ValueError where neither or both are given, and for what is not a falling list of shares.
    """
    if bool(text) == (run_dir is not None):
        raise ValueError(
            "the share of drafts that is accepted is needed, by position: give --acceptance 0.72,0.51,0.36 as the engine "
            "prints it, or --run FOLDER of `specbranch record`; one of them."
        )
    if run_dir is not None:
        traces = read_run(run_dir).traces()
        return measured_acceptance(traces, max(max_length, 1)), traces
    return acceptance_from(text, "--acceptance"), []


def measured_acceptance(traces: Sequence[RequestTrace], max_length: int) -> AcceptanceByPosition:
    """Acceptance by position of serial rounds of this length on recorded requests, which begin where the last one ended."""
    reached, accepted = np.zeros(max_length), np.zeros(max_length)
    for trace in traces:
        mismatches = next_mismatches(trace.ranks)
        position = 0
        while position < trace.num_tokens:
            length = min(max_length, trace.num_tokens - position)
            count = min(mismatches[position] - position, length)
            reached[: min(count + 1, length)] += 1
            accepted[:count] += 1
            position += count + 1
    return AcceptanceByPosition(tuple((accepted / np.maximum(reached, 1)).tolist()))


def policies_of(
    labels: Sequence[str],
    machine: Machine,
    acceptance: AcceptanceByPosition,
    traces: Sequence[RequestTrace],
    settings: PlanSettings,
    traffic: Traffic,
) -> tuple[tuple[str, ...], list[str]]:
    """The labels with the settings that they leave open resolved, and a line for each of these.

    Settings follow from a step of as many requests as a replica holds within the objectives, and from the traces; without
    them from drawn ones. Raises PolicyError for what is no policy, and for the same one twice.
    """
    if not check_labels(labels):
        return tuple(labels), []
    whole = traffic.sample(settings.num_requests, settings.seed)
    num_requests = requests_at_once(machine, settings, int(whole.prompt_tokens.mean() + whole.output_tokens.mean() / 2))
    known = traces or drawn_traces(acceptance, settings.seed)
    resolved = resolve(labels, known, BatchLatency(machine.costs, num_requests))
    lines = [f"for {num_requests} requests at once: {line}" for line in resolution_lines(resolved)]
    return tuple(map(label_of, resolved.values())), lines


def requests_at_once(machine: Machine, settings: PlanSettings, context_tokens: int) -> int:
    """How many requests a replica runs at most without speculation: by its batch, its memory and the objective of TPOT."""
    held = machine.kv_tokens // max(context_tokens, 1)
    limit_s = settings.objectives.tpot_s or math.inf
    most = max(1, min(settings.server.max_num_seqs, held))
    steps = (machine.costs.target_s(count, count * context_tokens, count) for count in range(1, most + 1))
    return max(1, sum(1 for step_s in steps if step_s <= limit_s))


def machine_from(
    planned: Planned, costs: Path | None, *, kv_tokens: int | None, price_per_hour: float | None
) -> Machine:
    """A replica by data sheets, or by fitted step costs. Raises ValueError for what cannot be read or is not known."""
    if kv_tokens is not None and kv_tokens < 1:
        raise ValueError(f"--kv-tokens must be at least 1, but got {kv_tokens}.")
    if costs is None:
        return machine_of(planned, price_per_hour=price_per_hour, kv_tokens=kv_tokens)
    if kv_tokens is None:
        raise ValueError(
            "--costs says nothing of the memory; give --kv-tokens as the engine's log does (GPU KV cache size)."
        )
    return Machine(
        name="server",
        costs=costs_from(costs),
        kv_tokens=kv_tokens,
        kv_tokens_with_draft=kv_tokens,
        num_devices=planned.num_devices,
        price_per_hour=price_per_hour,
    )
