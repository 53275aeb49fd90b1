"""Predicted against measured: run policies for real on held-out prompts and hold the simulator to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from analysis.prediction import predict, speed_of
from sim.latency import LatencyModel
from sim.policies.catalog import parse_policy
from sim.replay import replay
from traces.runs import Run
from traces.schema import RequestTrace
from traces.speeds import measured_speeds, mismatched_prompts

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
    predicted_speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What `summary.json` holds under `validation`. regret: best measured speed over that of the predicted best, minus 1;
    the worst over temperatures."""

    policies: list[PolicyCheck]
    mean_abs_relative_error: float
    worst_abs_relative_error: float
    mean_abs_latency_error: float
    worst_abs_latency_error: float
    regret: float
    tokens_identical: bool
    rounds_identical: bool
    num_rounds_compared: int
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
                predicted_speedup=guess.speedup,
            )
        )
    errors = [abs(check.relative_error) for check in checks]
    latency_errors = [abs(check.latency_error) for check in checks]
    num_compared, is_same = compare_rounds(measured)
    contention = dict(measured.summary.get("contention", {}))
    is_claim = contention.get("mean_other_share", 0.0) <= BUSY_SHARE
    return Validation(
        policies=checks,
        mean_abs_relative_error=sum(errors) / len(errors),
        worst_abs_relative_error=max(errors),
        mean_abs_latency_error=sum(latency_errors) / len(latency_errors),
        worst_abs_latency_error=max(latency_errors),
        regret=max(_regret(checks, temperature) for temperature in temperatures),
        tokens_identical=not mismatched_prompts(measured.requests),
        rounds_identical=is_same,
        num_rounds_compared=num_compared,
        contention=contention,
        is_claim=is_claim,
        note="" if is_claim else "other processes were using the cores: these times support no claim.",
    )


def compare_rounds(measured: Run) -> tuple[int, bool]:
    """Replay every request of a run from its alignment trace: (rounds compared, whether all were equal in every field)."""
    traces = {(trace.prompt_id, trace.temperature): trace for trace in measured.traces()}
    num_compared, is_same = 0, True
    for row in measured.requests.itertuples():
        trace = traces[(str(row.prompt_id), float(str(row.temperature)))]
        executed = measured.rounds_of(int(str(row.request_id)))
        replayed = [turn._replace(request_id=int(str(row.request_id))) for turn in replay(parse_policy(str(row.policy)), trace)]
        num_compared += len(executed)
        is_same &= executed == replayed
    return num_compared, is_same


def _regret(checks: Sequence[PolicyCheck], temperature: float) -> float:
    here = [check for check in checks if check.temperature == temperature]
    chosen = max(here, key=lambda check: check.predicted_tokens_per_s)
    best = max(check.measured_tokens_per_s for check in here)
    return best / chosen.measured_tokens_per_s - 1
