"""Predicted against measured: run policies for real on held-out prompts and hold the simulator to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from analysis.check.identity import (
    RoundComparison,
    compare_rounds,
    policies_with_other_tokens,
    why_rounds_differ,
    why_tokens_differ,
)
from analysis.check.predict import predict, speed_of
from analysis.check.reports import read_report, write_report
from analysis.explore.inputs import LatencySource, doubt_of_latency, latency_of
from executor.recording.settings import RecordSettings, read_settings
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import Run, read_run
from traces.folder.writer import check_new_folder
from traces.metrics.speeds import Speed, doubt_of, measured_speeds, mismatched_prompts
from traces.progress import Report, silent
from traces.schema import RequestTrace

VALIDATION = "validation"
BUSY = "other processes were using the cores: these times support no claim"
BUSY_SHARE = 0.10  # cores kept busy by others above which no claim about speed is made


@dataclass(frozen=True, kw_only=True)
class PolicyCheck:
    """One policy at one temperature. relative_error = predicted / measured - 1.

    latency_error: what is left of it when the simulator is given the acceptance of the very prompts measured;
    acceptance_error: the rest, what the recorded prompts and the held-out ones differ by.
    tokens_identical: whether its tokens are those of autoregressive decoding, None where that is not claimed.
    rounds_identical: whether its rounds are the replayed ones, but for rounding. Both are None in old reports.
    """

    policy: str
    temperature: float
    predicted_tokens_per_s: float
    predicted_interval: tuple[float, float]
    measured_tokens_per_s: float
    measured_interval: tuple[float, float]
    relative_error: float
    latency_error: float
    acceptance_error: float
    speedup_over_autoregressive: float | None
    speedup_interval: tuple[float, float] | None
    predicted_speedup: float | None
    tokens_identical: bool | None = None
    rounds_identical: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What validation.json holds. regret: best measured speed over that of the predicted best, minus 1;
    the worst over temperatures. rounds_identical: but for requests whose rounds turned on the last digits of a signal, which
    are counted (`analysis.check.identity`). note: why the times support no claim. reason: why tokens or rounds are not
    identical; both empty where there is nothing to say."""

    policies: list[PolicyCheck]
    mean_abs_relative_error: float
    worst_abs_relative_error: float
    mean_abs_latency_error: float
    worst_abs_latency_error: float
    regret: float
    tokens_identical: bool | None
    rounds_identical: bool
    num_rounds_compared: int
    num_requests_within_rounding: int
    contention: dict[str, float]
    is_claim: bool
    note: str
    reason: str = ""

    @property
    def is_identical(self) -> bool:
        """Whether tokens and rounds are those that they should be, or nothing is claimed of them."""
        return self.tokens_identical is not False and self.rounds_identical


def validate(measured: Run, recorded: Sequence[RequestTrace], latency: LatencyModel, *, seed: int = 0) -> Validation:
    """Compare a measured run with what the simulator says of its policies. Raises ValueError where nothing was recorded.

    measured: an executed run with alignment, on prompts that `recorded` does not hold.
    recorded: the traces that the prediction may use; latency: calibrated on their run.
    """
    speeds = measured_speeds(measured.requests, measured.rounds)
    policies = [parse_policy(label) for label in dict.fromkeys(speed.policy for speed in speeds)]
    temperatures = {speed.temperature for speed in speeds}
    usable = [trace for trace in recorded if trace.temperature in temperatures]
    missing = temperatures - {trace.temperature for trace in usable}
    if missing:
        raise ValueError(
            f"the recorded run holds no trace at temperature {', '.join(map(str, sorted(missing)))}; record there too."
        )
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
            speed_of(predicted, speed.policy, speed.temperature),
            speed_of(informed, speed.policy, speed.temperature),
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
    return _summarised(
        checks,
        rounds,
        dict(measured.summary.get("contention", {})),
        tokens_identical=tokens_identical,
        doubts=(
            doubt_of(sum(speed.num_unclean for speed in speeds), sum(speed.num_requests for speed in speeds)),
            doubt_of_latency(latency),
        ),
        reason="; ".join(filter(None, reasons)),
    )


def _summarised(
    checks: list[PolicyCheck],
    rounds: RoundComparison,
    contention: dict[str, float],
    *,
    tokens_identical: bool | None,
    doubts: Sequence[str],
    reason: str,
) -> Validation:
    """doubts: what else is to be said of the times; empty ones say nothing."""
    errors = [abs(check.relative_error) for check in checks]
    latency_errors = [abs(check.latency_error) for check in checks]
    is_claim = contention.get("mean_other_share", 0.0) <= BUSY_SHARE
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
        contention=contention,
        is_claim=is_claim,
        note="; ".join(filter(None, ("" if is_claim else BUSY, *doubts))),
        reason=reason,
    )


def _check(
    measured: Speed, predicted: Speed, informed: Speed, *, tokens_identical: bool | None, rounds_identical: bool
) -> PolicyCheck:
    """informed: what the simulator says when it is given the acceptance of the prompts measured."""
    error = predicted.tokens_per_s / measured.tokens_per_s - 1
    latency_error = informed.tokens_per_s / measured.tokens_per_s - 1
    return PolicyCheck(
        policy=measured.policy,
        temperature=measured.temperature,
        predicted_tokens_per_s=predicted.tokens_per_s,
        predicted_interval=predicted.interval,
        measured_tokens_per_s=measured.tokens_per_s,
        measured_interval=measured.interval,
        relative_error=error,
        latency_error=latency_error,
        acceptance_error=error - latency_error,
        speedup_over_autoregressive=measured.speedup,
        speedup_interval=measured.speedup_interval,
        predicted_speedup=predicted.speedup,
        tokens_identical=tokens_identical,
        rounds_identical=rounds_identical,
    )


def _regret(checks: Sequence[PolicyCheck], temperature: float) -> float:
    here = [check for check in checks if check.temperature == temperature]
    chosen = max(here, key=lambda check: check.predicted_tokens_per_s)
    best = max(check.measured_tokens_per_s for check in here)
    return best / chosen.measured_tokens_per_s - 1


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
    progress: Report = silent,
) -> Validation:
    """Execute policies on prompts that the run does not hold, predict them from the run, and write both down.

    The new run takes the recorded one's settings and its next prompts; validation.json in its folder holds the result. A
    machine's speed drifts by more in minutes than a good calibration errs, so the recorded prompts and policies run again,
    turn by turn with the new ones, and the latencies are calibrated on those turns; acceptance comes from the recorded run.
    With a latency model given, or a file of one, that is used instead.
    trusts_remote_code: whether code in the folders of the models may be run; that the recording did is not enough.
    """
    recorded = read_run(run_dir)
    base = read_settings(recorded.config, where=run_dir)
    if base is None:
        raise ValueError(f"no models made the run {run_dir}, so nothing of it can be measured; give a recorded run.")
    check_new_folder(output_dir)
    known = None if latency is None else latency_of(recorded, latency)
    anchors = [] if known else [parse_policy(label) for label in base.decoding.policies]
    tested = list(dict.fromkeys([Autoregressive(), *policies]))
    num_anchored = min(num_prompts, base.prompts.num) if anchors else 0
    settings = replace(
        base,
        decoding=replace(base.decoding, policies=tuple(map(label_of, dict.fromkeys([*tested, *anchors])))),
        prompts=replace(
            base.prompts, num=num_anchored + num_prompts, skip=base.prompts.skip + base.prompts.num - num_anchored
        ),
        repeats=repeats,
        aligns=True,
        pair=replace(base.pair, engine=replace(base.pair.engine, trusts_remote_code=trusts_remote_code)),
    )
    old_prompts = set(recorded.requests.prompt_id)
    measured = _measure(settings, output_dir, tested, anchors, old_prompts, progress=progress)
    is_old = measured.requests.prompt_id.isin(old_prompts)
    if known is None:
        known = FittedLatency(calibrate(measured.subset(measured.requests.request_id[is_old]), seed=seed))
    part = measured.subset(measured.requests.request_id[~is_old])
    validation = validate(part, recorded.traces(), known, seed=seed)
    write_report(output_dir, VALIDATION, validation)
    return validation


def _measure(
    settings: RecordSettings,
    output_dir: Path,
    tested: Sequence[Policy],
    anchors: Sequence[Policy],
    old_prompts: set[str],
    *,
    progress: Report,
) -> Run:
    """Run the tested policies on new prompts, in turns with the anchors on old ones."""
    from executor.hrad.predictor import check_classes
    from executor.models.names import check_drafter
    from executor.pair import Session
    from executor.recording.recorder import record
    from executor.recording.schedule import check_prompts, interleaved, make_requests, rotated

    for policy in tested:
        check_classes(policy, bool(settings.pair.hrad))
        check_drafter(policy, settings.pair.draft)
    check_prompts(settings)
    with Session(settings.pair) as session:
        requests = make_requests(settings, session)
        old = [request for request in requests if request.prompt_id in old_prompts]
        new = [request for request in requests if request.prompt_id not in old_prompts]
        schedule = [
            entry
            for entry in rotated(interleaved(new, old), list(dict.fromkeys([*tested, *anchors])), settings.repeats)
            if entry.policy in (anchors if entry.request.prompt_id in old_prompts else tested)
        ]
        return record(schedule, settings, output_dir, session=session, progress=progress)


def read_validation(folder: Path) -> Validation:
    """The validation in a run folder, written by this version or by the first. Raises `RunError` if there is none."""
    values = read_report(folder, VALIDATION)
    for check in values["policies"]:
        if check["speedup_interval"] == [None, None]:  # as the first version wrote an unknown one
            check["speedup_interval"] = None
    return TypeAdapter(Validation).validate_python(values)
