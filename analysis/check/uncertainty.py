"""How far a calibration can be trusted: predicted speeds from calibrations that lack one stretch of time each.

Requests that ran close in time were disturbed together, so they are no independent sample of what operations take. The run is
cut into stretches of whole prompts, one is left out at a time, and the latencies are fitted to the rest: a jackknife over
groups (Quenouille 1949; Efron and Tibshirani 1993, 11.5). A bootstrap over stretches would say the same, but would decode
requests twice, which the fit of a round's cold starts does not understand.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.latency.fitted import FittedLatency
from sim.sweep.sweep import sweep
from traces.fits.calibration import calibrate, groups_of
from traces.folder.run import Run
from traces.metrics.machine_speed import MachineSpeed
from traces.schema import RequestTrace

NUM_STRETCHES = 8
NORMAL_95 = 1.96
Key = tuple[str, float]  # label of a policy, temperature


@dataclass(frozen=True)
class Spread:
    """Relative standard errors of predictions, from the calibration alone, by policy and temperature; empty if unknown."""

    speeds: Mapping[Key, float]
    speedups: Mapping[Key, float]


UNKNOWN_SPREAD = Spread({}, {})


def calibration_spread(
    run: Run, machine: MachineSpeed, policies: Sequence[Policy], traces: Sequence[RequestTrace]
) -> Spread:
    """What leaving out each stretch of the calibrated run does to the predictions. policies: the first is the baseline.

    run: what was calibrated on; machine: its speed. traces: what the predictions are for.
    """
    order = run.requests.sort_values("arrival_s").prompt_id.drop_duplicates().to_numpy()
    num = min(NUM_STRETCHES, len(order))
    if num < 3:
        return UNKNOWN_SPREAD
    policies = list(dict.fromkeys(policies))
    temperatures = sorted({trace.temperature for trace in traces})
    predicted, needed = [], set(groups_of(run.ops))
    for left_out in np.array_split(order, num):
        kept = run.requests.loc[~run.requests.prompt_id.isin(left_out), "request_id"]
        rest = run.subset(kept)
        if set(groups_of(rest.ops)) != needed:
            return UNKNOWN_SPREAD  # one stretch holds all that there is of some operation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the run was said of the whole of it
            latency = FittedLatency(calibrate(rest, machine=machine, num_resamples=2))
        predicted.append([_log_speeds(policies, traces, temperature, latency) for temperature in temperatures])
    logs = np.array(predicted)  # (stretches, temperatures, policies)
    keys = [(label_of(policy), temperature) for temperature in temperatures for policy in policies]
    return Spread(*(dict(zip(keys, _errors(values), strict=True)) for values in (logs, logs - logs[:, :, :1])))


def _log_speeds(
    policies: Sequence[Policy], traces: Sequence[RequestTrace], temperature: float, latency: FittedLatency
) -> NDArray[np.float64]:
    here = [trace for trace in traces if trace.temperature == temperature]
    return np.log(sweep(policies, here, latency).decode_tokens_per_s)


def _errors(logs: NDArray[np.float64]) -> list[float]:
    """Standard errors by the jackknife, of each policy and temperature. logs: (stretches, temperatures, policies)."""
    num = len(logs)
    errors: list[float] = np.sqrt((num - 1) / num * ((logs - logs.mean(axis=0)) ** 2).sum(axis=0)).ravel().tolist()
    return errors


def widened(value: float, interval: tuple[float, float], relative_error: float) -> tuple[float, float]:
    """A 95% interval with an independent relative standard error taken in. All numbers are positive.

    >>> low, high = widened(2.0, (1.8, 2.2), 0.0)
    >>> round(low, 6), round(high, 6)
    (1.8, 2.2)
    """
    low, high = (
        math.exp(math.copysign(math.hypot(math.log(end / value), NORMAL_95 * relative_error), side))
        for end, side in zip(interval, (-1, 1), strict=True)
    )
    return value * low, value * high
