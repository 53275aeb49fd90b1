"""Whether measured times support a claim about speed. A claim is earned: what stands against it is said in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from traces.metrics.machine_speed import MachineSpeed
from traces.metrics.speeds import doubt_of

BUSY_SHARE = 0.10  # cores kept busy by others above which no claim about speed is made
MAX_UNCLEAN = 0.10  # share of requests that ran beside other load
MAX_UNEXPLAINED = 0.10  # of a request's time that neither its policy nor the machine's fitted speed explains
MAX_SAME_POLICY_DIFFERENCE = 0.03
BUSY = "other processes were using the cores: these times support no claim"


def reasons_against(
    contention: Mapping[str, float],
    *,
    num_unclean: int,
    num_requests: int,
    machine: MachineSpeed,
    same_policy_difference: float | None,
    latency_doubt: str,
) -> list[str]:
    """Why times support no claim, in sentences without a full stop; none where they do.

    contention: of the run's summary. num_unclean: of num_requests, those that ran beside other load.
    """
    reasons = []
    if contention.get("mean_other_share", 0.0) > BUSY_SHARE:
        reasons.append(BUSY)
    if num_unclean > MAX_UNCLEAN * num_requests:
        reasons.append(doubt_of(num_unclean, num_requests))
    if machine.unexplained > MAX_UNEXPLAINED:
        reasons.append(
            f"the machine's speed moved faster than could be followed, and requests still differ by "
            f"{machine.unexplained:.0%}: these times support no claim"
        )
    if same_policy_difference is not None and same_policy_difference > MAX_SAME_POLICY_DIFFERENCE:
        reasons.append(
            f"one policy, measured twice in turns, differs from itself by {same_policy_difference:.1%}: these times support "
            "no claim"
        )
    return [*reasons, latency_doubt] if latency_doubt else reasons
