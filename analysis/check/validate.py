"""Predicted against measured: run policies for real on held-out prompts and hold the simulator to them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.check.claims import reasons_against
from analysis.check.identity import (
    RoundComparison,
    compare_rounds,
    policies_with_other_tokens,
    why_rounds_differ,
    why_tokens_differ,
)
from analysis.check.precision import Effort, Watch, widest_interval
from analysis.check.predict import predict, speed_of
from analysis.check.reports import write_report
from analysis.check.uncertainty import UNKNOWN_SPREAD, Spread, calibration_spread, widened
from analysis.check.validation import VALIDATION, PolicyCheck, Validation
from analysis.explore.inputs import LatencySource, doubt_of_latency, latency_of
from executor.recording.settings import RecordSettings, read_settings
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate, groups_of
from traces.folder.run import Run, read_run
from traces.folder.writer import check_new_folder
from traces.metrics.machine_speed import MachineSpeed, machine_speed_of
from traces.metrics.speeds import Speed, measured_speeds, mismatched_prompts, same_policy_difference
from traces.progress import Report, silent
from traces.schema import RequestTrace

if TYPE_CHECKING:
    from executor.pair import Session

BASELINE = "autoregressive"
NEW_PER_OLD = 2  # prompts measured for one that calibrates: in a short time the new ones' acceptance is unsure
MIN_ANCHORED = 4  # prompts that calibrate, where so many were recorded: one or two may end at their first token


def validate(
    measured: Run,
    recorded: Sequence[RequestTrace],
    latency: LatencyModel,
    *,
    seed: int = 0,
    machine: MachineSpeed | None = None,
    spread: Spread = UNKNOWN_SPREAD,
) -> Validation:
    """Compare a measured run with what the simulator says of its policies. Raises ValueError where nothing was recorded.

    measured: an executed run with alignment, on prompts that `recorded` does not hold.
    recorded: the traces that the prediction may use; latency: calibrated on their run. machine: its speed while it measured;
    None where the run itself is to tell. spread: what the calibration adds to the uncertainty of predictions.
    """
    machine = machine or machine_speed_of(measured.requests, measured.rounds)
    speeds, rounds_adjusted = measured_speeds(measured.requests, measured.rounds), machine.adjusted(measured.rounds)
    adjusted = measured_speeds(measured.requests, rounds_adjusted)
    policies = [parse_policy(label) for label in dict.fromkeys(speed.policy for speed in speeds)]
    usable = _usable(recorded, {speed.temperature for speed in speeds})
    predicted = predict(policies, usable, latency, seed=seed).speeds
    informed = predict(policies, measured.traces(), latency, seed=seed).speeds
    rounds = compare_rounds(measured)
    # Synthetic acceptance decides outcomes, so its tokens prove nothing.
    settings = read_settings(measured.config, where=measured.folder)
    has_own_tokens = settings is None or not settings.decoding.acceptance
    different = policies_with_other_tokens(measured.requests)
    checks = [
        _check(
            speed,
            *(speed_of(others, speed.policy, speed.temperature) for others in (adjusted, predicted, informed)),
            spread=spread,
            tokens_identical=(speed.policy, speed.temperature) not in different if has_own_tokens else None,
            rounds_identical=rounds.is_same(speed.policy, speed.temperature),
        )
        for speed in speeds
    ]
    tokens_identical = not mismatched_prompts(measured.requests) if has_own_tokens else None
    dtype = settings.pair.engine.dtype if settings else "float32"
    reasons = (
        why_tokens_differ(measured.requests, dtype) if tokens_identical is False else "",
        why_rounds_differ(rounds.mismatches, dtype),
    )
    contention = dict(measured.summary.get("contention", {}))
    difference = same_policy_difference(measured.requests, rounds_adjusted)
    doubts = reasons_against(
        contention,
        num_unclean=sum(speed.num_unclean for speed in speeds),
        num_requests=sum(speed.num_requests for speed in speeds),
        machine=machine,
        same_policy_difference=difference,
        latency_doubt=doubt_of_latency(latency),
    )
    found = _summarised(checks, rounds, tokens_identical=tokens_identical, reason="; ".join(filter(None, reasons)))
    return replace(
        found,
        contention=contention,
        is_claim=not doubts,
        note="; ".join(doubts),
        same_policy_difference=difference,
        drift_range=machine.range,
        widest_interval=widest_interval(adjusted),
    )


def _usable(recorded: Sequence[RequestTrace], temperatures: Collection[float]) -> list[RequestTrace]:
    """The recorded traces at these temperatures, each of which needs some."""
    usable = [trace for trace in recorded if trace.temperature in temperatures]
    missing = set(temperatures) - {trace.temperature for trace in usable}
    if missing:
        raise ValueError(
            f"the recorded run holds no trace at temperature {', '.join(map(str, sorted(missing)))}; record there too."
        )
    return usable


def _summarised(
    checks: list[PolicyCheck], rounds: RoundComparison, *, tokens_identical: bool | None, reason: str
) -> Validation:
    """What follows from the policies alone; what the times are worth is for the caller to add."""
    errors = [abs(check.relative_error) for check in checks]
    latency_errors = [abs(check.latency_error) for check in checks]
    speedup_errors = [abs(check.speedup_error) for check in checks if check.speedup_error is not None]
    covered = [check.is_covered for check in checks if check.is_covered is not None]
    return Validation(
        policies=checks,
        mean_abs_relative_error=sum(errors) / len(errors),
        worst_abs_relative_error=max(errors),
        mean_abs_latency_error=sum(latency_errors) / len(latency_errors),
        worst_abs_latency_error=max(latency_errors),
        regret=max(_regret(checks, temperature) for temperature in {check.temperature for check in checks}),
        tokens_identical=tokens_identical,
        rounds_identical=rounds.is_identical,
        num_rounds_compared=rounds.num_rounds,
        num_requests_within_rounding=rounds.num_within_rounding,
        contention={},
        is_claim=False,
        note="",
        reason=reason,
        mean_abs_speedup_error=sum(speedup_errors) / len(speedup_errors) if speedup_errors else None,
        worst_abs_speedup_error=max(speedup_errors, default=None),
        interval_coverage=sum(covered) / len(covered) if covered else None,
    )


def _check(
    measured: Speed,
    adjusted: Speed,
    predicted: Speed,
    informed: Speed,
    *,
    spread: Spread,
    tokens_identical: bool | None,
    rounds_identical: bool,
) -> PolicyCheck:
    """informed: what the simulator says when it is given the acceptance of the prompts measured."""
    key = measured.policy, measured.temperature
    error = predicted.tokens_per_s / measured.tokens_per_s - 1
    latency_error = informed.tokens_per_s / adjusted.tokens_per_s - 1
    acceptance_error = (predicted.tokens_per_s - informed.tokens_per_s) / adjusted.tokens_per_s
    predicted_speedup_interval = speedup_error = speedup_latency_error = None
    if predicted.speedup and predicted.speedup_interval and adjusted.speedup and measured.policy != BASELINE:
        predicted_speedup_interval = widened(
            predicted.speedup, predicted.speedup_interval, spread.speedups.get(key, 0.0)
        )
        speedup_error = predicted.speedup / adjusted.speedup - 1
        speedup_latency_error = informed.speedup / adjusted.speedup - 1 if informed.speedup else None
    return PolicyCheck(
        policy=measured.policy,
        temperature=measured.temperature,
        predicted_tokens_per_s=predicted.tokens_per_s,
        predicted_interval=widened(predicted.tokens_per_s, predicted.interval, spread.speeds.get(key, 0.0)),
        measured_tokens_per_s=measured.tokens_per_s,
        measured_interval=measured.interval,
        relative_error=error,
        latency_error=latency_error,
        acceptance_error=acceptance_error,
        speedup_over_autoregressive=measured.speedup,
        speedup_interval=measured.speedup_interval,
        predicted_speedup=predicted.speedup,
        tokens_identical=tokens_identical,
        rounds_identical=rounds_identical,
        adjusted_tokens_per_s=adjusted.tokens_per_s,
        adjusted_interval=adjusted.interval,
        adjusted_speedup=adjusted.speedup,
        adjusted_speedup_interval=adjusted.speedup_interval,
        predicted_speedup_interval=predicted_speedup_interval,
        speedup_error=speedup_error,
        speedup_latency_error=speedup_latency_error,
        machine_error=error - latency_error - acceptance_error,
    )


def _regret(checks: Sequence[PolicyCheck], temperature: float) -> float:
    here = [check for check in checks if check.temperature == temperature]
    chosen = max(here, key=lambda check: check.predicted_tokens_per_s)
    return max(check.speed for check in here) / chosen.speed - 1


def validate_run(
    run_dir: Path,
    output_dir: Path,
    policies: Sequence[Policy],
    *,
    latency: LatencySource = None,
    num_prompts: int = 16,
    repeats: int = 1,
    seed: int = 0,
    trusts_remote_code: bool = False,
    effort: Effort | None = None,
    session: Session | None = None,
    progress: Report = silent,
) -> Validation:
    """Execute policies on prompts that the run does not hold, predict them from the run, and write both down.

    The new run takes the recorded one's settings and its next prompts; validation.json in its folder holds the result. A
    machine's speed drifts by more in minutes than a good calibration errs, so the recorded prompts and policies run again,
    turn by turn with the new ones, and the latencies are calibrated on those turns; acceptance comes from the recorded run.
    With a latency model given, or a file of one, that is used instead.
    trusts_remote_code: whether code in the folders of the models may be run; that the recording did is not enough.
    effort: when to stop before all prompts are through; None goes through all of them. session: of the recorded pair, used and
    left open; None starts one.
    """
    recorded = read_run(run_dir)
    base = read_settings(recorded.config, where=run_dir)
    if base is None:
        raise ValueError(f"no models made the run {run_dir}, so nothing of it can be measured; give a recorded run.")
    check_new_folder(output_dir)
    known = None if latency is None else latency_of(recorded, latency)
    anchors = [] if known else [parse_policy(label) for label in base.decoding.policies]
    tested = list(dict.fromkeys([Autoregressive(), *policies]))
    num_anchored = min(max(MIN_ANCHORED, -(-num_prompts // NEW_PER_OLD)), base.prompts.num) if anchors else 0
    settings = replace(
        base,
        decoding=replace(base.decoding, policies=tuple(map(label_of, dict.fromkeys([*tested, *anchors])))),
        prompts=replace(
            base.prompts,
            num=num_anchored + num_prompts,
            skip=base.prompts.skip + base.prompts.num - num_anchored,
            num_timed=None,
        ),
        repeats=repeats,
        aligns=True,
        pair=replace(base.pair, engine=replace(base.pair.engine, trusts_remote_code=trusts_remote_code)),
    )
    old_prompts = set(recorded.requests.prompt_id)
    measured = _measure(
        settings, output_dir, tested, anchors, old_prompts, effort=effort, session=session, progress=progress
    )
    is_old = measured.requests.prompt_id.isin(old_prompts)
    machine, traces = machine_speed_of(measured.requests, measured.rounds), recorded.traces()
    part, spread = measured.subset(measured.requests.request_id[~is_old]), UNKNOWN_SPREAD
    if known is None:
        old, clock = measured.subset(measured.requests.request_id[is_old]), machine
        if not set(groups_of(recorded.ops)) <= set(groups_of(old.ops)):
            warnings.warn(
                f"the {num_anchored} recorded prompts that ran again ended before every kind of operation had run, so the "
                "latencies are those of the recording: measure more prompts, or record with --ignore-eos.",
                stacklevel=2,
            )
            old, clock = recorded, machine_speed_of(recorded.requests, recorded.rounds)
        known, spread = _calibrated(old, tested, _usable(traces, set(part.requests.temperature)), seed, clock)
    validation = validate(part, traces, known, seed=seed, machine=machine, spread=spread)
    write_report(output_dir, VALIDATION, validation)
    return validation


def _calibrated(
    run: Run, tested: Sequence[Policy], traces: Sequence[RequestTrace], seed: int, machine: MachineSpeed
) -> tuple[LatencyModel, Spread]:
    """Latencies of a run, and what they add to the uncertainty of predictions on the traces. machine: its speed meanwhile."""
    return FittedLatency(calibrate(run, seed=seed, machine=machine)), calibration_spread(run, machine, tested, traces)


def _measure(
    settings: RecordSettings,
    output_dir: Path,
    tested: Sequence[Policy],
    anchors: Sequence[Policy],
    old_prompts: set[str],
    *,
    effort: Effort | None,
    session: Session | None,
    progress: Report,
) -> Run:
    """Run the tested policies on new prompts, in turns with the anchors on old ones; the baseline twice on new ones."""
    from executor.hrad.predictor import check_classes, predicted_window
    from executor.models.names import check_drafter
    from executor.pair import Session
    from executor.recording.recorder import record
    from executor.recording.schedule import check_prompts, in_blocks, interleaved, make_requests

    window = predicted_window(settings.pair.hrad)
    for policy in tested:
        check_classes(policy, window)
        check_drafter(policy, settings.pair.draft)
    if session is None:
        check_prompts(settings)
    with nullcontext(session) if session is not None else Session(settings.pair) as session:
        requests = make_requests(settings, session)
        old = [request for request in requests if request.prompt_id in old_prompts]
        new = [request for request in requests if request.prompt_id not in old_prompts]
        blocks = in_blocks(
            interleaved(new, old, num=NEW_PER_OLD),
            lambda request: anchors if request.prompt_id in old_prompts else [tested[0], *tested],
            repeats=settings.repeats,
            seed=settings.decoding.seed,
        )
        watch = Watch(effort, old_prompts) if effort else None
        return record(blocks, settings, output_dir, session=session, progress=progress, is_enough=watch)
