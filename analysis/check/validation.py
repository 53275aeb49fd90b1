"""What a validation holds: each policy predicted beside measured, and what the comparison amounts to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from analysis.check.reports import read_report, typed_report

VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class PolicyCheck:
    """One policy at one temperature. speedup_error = predicted over measured speed-up, minus 1; measured in adjusted times,
    on the same prompts at the same times as the baseline (None for the baseline, and in old reports). speedup_latency_error:
    what is left of it when the simulator is given the acceptance of the very prompts measured.

    adjusted: at the machine's median speed (`traces.metrics.machine_speed`); old reports have none. Predicted intervals hold
    the calibration's own uncertainty besides that of the prompts.
    relative_error = predicted / measured - 1 = latency_error + acceptance_error + machine_error. latency_error: what is left
    when the simulator is given the acceptance of the very prompts measured and the machine stands still; acceptance_error:
    what the recorded prompts and the held-out ones differ by; machine_error: what the machine's speed, moving, adds.
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
    adjusted_tokens_per_s: float | None = None
    adjusted_interval: tuple[float, float] | None = None
    adjusted_speedup: float | None = None
    adjusted_speedup_interval: tuple[float, float] | None = None
    predicted_speedup_interval: tuple[float, float] | None = None
    speedup_error: float | None = None
    speedup_latency_error: float | None = None
    machine_error: float = 0.0

    @property
    def speed(self) -> float:
        """Measured tokens a second, adjusted where that is known."""
        return self.measured_tokens_per_s if self.adjusted_tokens_per_s is None else self.adjusted_tokens_per_s

    @property
    def speedup(self) -> float | None:
        """Measured, adjusted where that is known."""
        return self.speedup_over_autoregressive if self.adjusted_speedup is None else self.adjusted_speedup

    @property
    def best_speedup_interval(self) -> tuple[float, float] | None:
        """Of `speedup`."""
        return self.speedup_interval if self.adjusted_speedup is None else self.adjusted_speedup_interval

    @property
    def is_covered(self) -> bool | None:
        """Whether predicted and measured speed-up agree within both their 95% intervals; None where one is not known.

        Of the ratio of the two, that is: the intervals' half-widths, in logarithms, add up as independent errors do. That both
        intervals merely overlap would say less: true ones do so in 99 of 100 cases.
        """
        measured, predicted = self.adjusted_speedup_interval, self.predicted_speedup_interval
        if measured is None or predicted is None or not self.predicted_speedup or not self.adjusted_speedup:
            return None
        is_above = self.predicted_speedup >= self.adjusted_speedup  # then the inner ends count
        inner = (
            (predicted[0] / self.predicted_speedup, measured[1] / self.adjusted_speedup)
            if is_above
            else (predicted[1] / self.predicted_speedup, measured[0] / self.adjusted_speedup)
        )
        error = math.log(self.predicted_speedup / self.adjusted_speedup)
        return abs(error) <= math.hypot(*map(math.log, inner))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What validation.json holds. regret: best measured speed over that of the predicted best, minus 1;
    the worst over temperatures. rounds_identical: but for requests whose rounds turned on the last digits of a signal, which
    are counted (`analysis.check.identity`). is_claim: whether the times support a claim; note: why not. reason: why tokens or
    rounds are not identical; both empty where there is nothing to say.

    mean_abs_speedup_error, worst_abs_speedup_error: the headline, of adjusted speed-ups. same_policy_difference: how far two
    measurements of one policy, taken in turns, are apart, as a fraction: a smaller error is none. interval_coverage: share of
    the policies whose predicted and measured speed-ups agree within their 95% intervals. drift_range: between which speeds the
    machine moved, in units of its median. widest_interval: half the widest interval of a measured speed-up, over it. All of
    these are None in old reports, and where nothing tells them.
    """

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
    mean_abs_speedup_error: float | None = None
    worst_abs_speedup_error: float | None = None
    same_policy_difference: float | None = None
    interval_coverage: float | None = None
    drift_range: tuple[float, float] | None = None
    widest_interval: float | None = None

    @property
    def is_identical(self) -> bool:
        """Whether tokens and rounds are those that they should be, or nothing is claimed of them."""
        return self.tokens_identical is not False and self.rounds_identical


def read_validation(folder: Path) -> Validation:
    """The validation in a run folder, written by this version or by the first. Raises `RunError` if there is none."""
    values = read_report(folder, VALIDATION)
    checks = values.get("policies") if isinstance(values, dict) else None
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict) and check.get("speedup_interval") == [None, None]:  # as the first version wrote it
            check["speedup_interval"] = None
    return typed_report(folder, VALIDATION, values, TypeAdapter(Validation))
