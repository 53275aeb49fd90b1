"""The study that a user asks for, with the policies that follow from the run where the user leaves them open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from analysis.explore.inputs import LatencySource
from analysis.study.flags import StudyFlags
from analysis.study.study import Study
from analysis.tuning.auto import check_labels, default_policies, resolution_lines, resolve_on_run
from sim.decoding.policies.catalog import label_of
from traces.importers.unseen import Unseen


def asked_study(
    flags: StudyFlags, run_dir: Path | None, *, latency: LatencySource = None, unseen: Unseen = Unseen.REJECTED
) -> tuple[Study, list[str]]:
    """The study, and a line for each policy whose settings were open. run_dir: None where laws and latencies are all there is.

    Raises StudyError, PolicyError or RunError, before any work starts where the flags alone are at fault.
    """
    labels = flags.policies or ()
    stated = [label for label in labels if label not in check_labels(labels)]
    conditions = replace(flags, policies=stated).resolved().conditions
    if labels:
        resolved = resolve_on_run(
            labels,
            run_dir,
            latency=latency,
            temperatures=conditions.temperatures,
            unseen=unseen,
            alignments=conditions.alignments,
        )
        named = replace(flags, policies=list(map(label_of, resolved.values())))
        return named.resolved(), resolution_lines(resolved)
    if flags.study is not None:
        return flags.resolved(), []
    policies = default_policies(
        run_dir, latency=latency, temperatures=conditions.temperatures, unseen=unseen, alignments=conditions.alignments
    )
    return replace(flags, policies=list(map(label_of, policies))).resolved(), []
