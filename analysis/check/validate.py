"""Predicted against measured: run policies for real on held-out prompts and hold the simulator to them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from analysis.check.identity import compare_rounds
from analysis.check.predict import predict, speed_of
from analysis.explore.simulation import load_calibration
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of, parse_policy
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import Run, read_run
from traces.metrics.speeds import measured_speeds, mismatched_prompts
from traces.progress import Report, silent
from traces.schema import RequestTrace

BUSY_SHARE = 0.10  # cores kept busy by others above which no claim about speed is made


@dataclass(frozen=True, kw_only=True)
class PolicyCheck:
    """One policy at one temperature. relative_error = predicted / measured - 1.

    latency_error: what is left of it when the simulator is given the acceptance of the very prompts measured;
    acceptance_error: the rest, what the recorded prompts and the held-out ones differ by.
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
    speedup_interval: tuple[float, float]
    predicted_speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What `summary.json` holds under `validation`. regret: best measured speed over that of the predicted best, minus 1;
    the worst over temperatures. rounds_identical: but for requests whose rounds turned on the last digits of a signal, which
    are counted (`analysis.check.identity`)."""

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

    def as_dict(self) -> dict[str, object]:
        """Plain values for summary.json."""
        return asdict(self)


def validate(measured: Run, recorded: Sequence[RequestTrace], latency: LatencyModel, *, seed: int = 0) -> Validation:
    """Compare a measured run with what the simulator says of its policies.

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
    own_traces = measured.traces()
    predicted = predict(policies, usable, latency, seed=seed).speeds
    informed = predict(policies, own_traces, latency, seed=seed).speeds

    checks = []
    for speed in speeds:
        guess = speed_of(predicted, speed.policy, speed.temperature)
        known = speed_of(informed, speed.policy, speed.temperature)
        error = guess.tokens_per_s / speed.tokens_per_s - 1
        latency_error = known.tokens_per_s / speed.tokens_per_s - 1
        checks.append(
            PolicyCheck(
                policy=speed.policy,
                temperature=speed.temperature,
                predicted_tokens_per_s=guess.tokens_per_s,
                predicted_interval=guess.interval,
                measured_tokens_per_s=speed.tokens_per_s,
                measured_interval=speed.interval,
                relative_error=error,
                latency_error=latency_error,
                acceptance_error=error - latency_error,
                speedup_over_autoregressive=speed.speedup,
                speedup_interval=speed.speedup_interval or (float("nan"), float("nan")),
                predicted_speedup=guess.speedup,
            )
        )
    errors = [abs(check.relative_error) for check in checks]
    latency_errors = [abs(check.latency_error) for check in checks]
    rounds = compare_rounds(measured)
    contention = dict(measured.summary.get("contention", {}))
    is_claim = contention.get("mean_other_share", 0.0) <= BUSY_SHARE
    return Validation(
        policies=checks,
        mean_abs_relative_error=sum(errors) / len(errors),
        worst_abs_relative_error=max(errors),
        mean_abs_latency_error=sum(latency_errors) / len(latency_errors),
        worst_abs_latency_error=max(latency_errors),
        regret=max(_regret(checks, temperature) for temperature in temperatures),
        # Synthetic acceptance decides outcomes, so its tokens prove nothing.
        tokens_identical=None if measured.config.get("acceptance") else not mismatched_prompts(measured.requests),
        rounds_identical=rounds.is_identical,
        num_rounds_compared=rounds.num_rounds,
        num_requests_within_rounding=rounds.num_within_rounding,
        contention=contention,
        is_claim=is_claim,
        note="" if is_claim else "other processes were using the cores: these times support no claim.",
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
    calibration: Path | None = None,
    num_prompts: int = 16,
    repeats: int = 1,
    seed: int = 0,
    progress: Report = silent,
) -> Validation:
    """Execute policies on prompts that the run does not hold, predict them from the run, and write both down.

    The new run takes the recorded one's settings and its next prompts; its summary.json holds `validation`. A machine's
    speed drifts by more in minutes than a good calibration errs, so the recorded prompts and policies run again, turn by
    turn with the new ones, and the latencies are calibrated on those turns; acceptance comes from the recorded run. With
    a calibration given, that is used instead.
    """
    from executor.recording.recorder import RecordSettings, record
    from executor.recording.synthetic import SyntheticAcceptance
    from executor.request import Request

    recorded = read_run(run_dir)
    base = TypeAdapter(RecordSettings).validate_python(recorded.config)
    anchors = [] if calibration is not None else [label_of(parse_policy(label)) for label in base.policies]
    tested = list(dict.fromkeys(map(label_of, [Autoregressive(), *policies])))
    num_anchored = min(num_prompts, base.num_prompts) if anchors else 0
    settings = replace(
        base,
        policies=tuple(dict.fromkeys([*tested, *anchors])),
        num_prompts=num_anchored + num_prompts,
        skip_prompts=base.skip_prompts + base.num_prompts - num_anchored,
        repeats=repeats,
        aligns=True,
    )
    old_prompts = set(recorded.requests.prompt_id)
    found: list[Validation] = []

    def take_turns(requests: list[Request]) -> list[Request]:
        old = [request for request in requests if request.prompt_id in old_prompts]
        new = [request for request in requests if request.prompt_id not in old_prompts]
        pairs = itertools.zip_longest(new, old)
        return [request for pair in pairs for request in pair if request is not None]

    def conclude(measured: Run) -> dict[str, object]:
        requests = measured.requests
        is_old = requests.prompt_id.isin(old_prompts)
        fitted = load_calibration(recorded, calibration)
        if anchors:
            fitted = calibrate(measured.subset(requests.request_id[is_old]), seed=seed)
        part = measured.subset(requests.request_id[~is_old])
        found.append(validate(part, recorded.traces(), FittedLatency(fitted), seed=seed))
        return {"validation": found[0].as_dict()}

    record(
        settings,
        output_dir,
        progress=progress,
        conclude=conclude,
        wants=lambda label, request: label in (anchors if request.prompt_id in old_prompts else tested),
        arrange=take_turns,
        synthetic=SyntheticAcceptance(base.acceptance) if base.acceptance else None,
    )
    return found[0]
