"""From a study and a run to questions: at each temperature and alignment, the traces, the policies and the timings."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.explore.work.evaluation import Packed, Timing, Workload
from analysis.study.alignments import aligned_traces
from analysis.study.candidates import measured_settings
from analysis.study.study import Family, Study, StudyError
from analysis.tuning.measured import typical_context
from executor.models.names import check_drafter
from sim.decoding.policies.base import Needs, Policy
from sim.decoding.policies.catalog import POLICIES, label_of
from sim.decoding.replay import check_answers
from sim.latency.base import LatencyModel
from sim.latency.placement import cost_ratio_of
from traces.schema import RequestTrace, without_repeats


@dataclass(frozen=True)
class Question:
    """Policies on one set of traces. recorded: the traces behind those of the workload. measured: settings by
    method.
    """

    temperature: float
    alignment: str
    recorded: tuple[RequestTrace, ...]
    workload: Workload
    policies: tuple[Policy, ...]
    measured: Mapping[str, Mapping[str, Any]]
    cost_ratio: float

    def scenario(self, timing: Timing) -> str:
        """Its name in tables: what it shares with the recorded run is left out."""
        parts = [f"T={self.temperature:g}"]
        if self.alignment != "recorded":
            parts.append(self.alignment)
        parts.append(timing.placement.label)
        if timing.cost_ratio is not None:
            parts.append(f"c={timing.cost_ratio:g}")
        return " ".join(parts)

    def packed(self) -> Packed:
        """The workload for a worker; packed once."""
        return self._packed

    @cached_property
    def _packed(self) -> Packed:
        return self.workload.packed()

    def digest(self) -> str:
        """One line that tells this question from any other: policies, outcomes, signals and latencies."""
        workload = self.workload
        sha = hashlib.sha256(repr((self.policies, workload.latency, workload.timings, workload.seed)).encode())
        for trace in workload.traces:
            sha.update(repr((trace.prompt_id, trace.num_prompt_tokens, trace.max_new_tokens)).encode())
            sha.update(np.array(trace.ranks).tobytes() + np.array(trace.signals).tobytes())
        return sha.hexdigest()


def traces_of(
    traces: Sequence[RequestTrace], study: Study, *, where: str, draft: str | None = None
) -> dict[float, tuple[RequestTrace, ...]]:
    """The recorded traces that a study asks for, by temperature; one error if there are none, or if they cannot answer one
    of its policies: tails too short, no signals, no H-RAD classes, or a model's where a lookup is asked about.

    draft: the one that the run names, if it names one.
    """
    by_temperature: dict[float, list[RequestTrace]] = {}
    for trace in without_repeats(traces):
        by_temperature.setdefault(trace.temperature, []).append(trace)
    wanted = study.conditions.temperatures or sorted(by_temperature)
    for temperature in wanted:
        if temperature not in by_temperature:
            known = ", ".join(f"{known:g}" for known in sorted(by_temperature)) or "none"
            raise StudyError(
                f"{where} holds no trace at temperature {temperature:g}, only at {known}; record there first."
            )
    if not wanted:
        raise StudyError(f"{where} holds no trace; record with alignment on.")
    chosen = {temperature: tuple(by_temperature[temperature]) for temperature in wanted}
    # Settings that are measured later change no need: these follow from lengths and kinds of signal.
    needs: dict[Needs, Policy] = {}
    for policy in study.all_policies():
        with _blaming(policy):
            check_drafter(policy, draft)
        needs.setdefault(policy.needs, policy)
    for need, policy in needs.items():
        for trace in (trace for of_temperature in chosen.values() for trace in of_temperature):
            with _blaming(policy):
                check_answers(trace, need)
    return chosen


@contextmanager
def _blaming(policy: Policy) -> Iterator[None]:
    """Say which policy it was."""
    try:
        yield
    except ValueError as error:
        raise StudyError(f"policy {label_of(policy)}: {error}") from None


def make_questions(
    traces: Mapping[float, tuple[RequestTrace, ...]], latency: LatencyModel, study: Study
) -> list[Question]:
    """All questions of a study on the traces of `traces_of`, in the order of temperatures and alignments."""
    timings = tuple(
        Timing(placement, ratio)
        for placement in study.conditions.all_placements()
        for ratio in study.conditions.all_cost_ratios()
    )
    questions = []
    for temperature, recorded in traces.items():
        ratio = cost_ratio_of(latency, typical_context(recorded))
        measured = _measured(study, recorded, latency)
        for alignment in study.conditions.alignments:
            workload = Workload(
                traces=tuple(aligned_traces(alignment, recorded, seed=study.seed)),
                latency=latency,
                timings=timings,
                seed=study.seed if study.latency == "drawn" else None,
            )
            policies = tuple(study.all_policies(measured))
            questions.append(Question(temperature, alignment, recorded, workload, policies, measured, ratio))
    return questions


def _measured(study: Study, traces: Sequence[RequestTrace], latency: LatencyModel) -> dict[str, dict[str, Any]]:
    """Settings that follow from measurements, for the families that ask for them."""
    methods = {entry.method for entry in study.policies if isinstance(entry, Family) and entry.is_measured}
    values = measured_settings(traces, latency) if methods else {}
    return {
        method: {
            entry.name: values[entry.name] for entry in dataclasses.fields(POLICIES[method]) if entry.name in values
        }
        for method in methods
        if method in POLICIES
    }
