"""What a fit reads off a server's benchmarks besides its costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.plan.measured.benches import VLLM
from analysis.plan.measured.fit import fit_server
from tests.analysis.plan.measured.made_up_server import bench, measure


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("loads", [(1, 4, 16), (1, 64)])
def test_whether_a_server_plans_a_step_ahead_is_seen_in_its_ttft(loads: tuple[int, ...], ahead: bool) -> None:
    """At few requests by the steps that one waits; where none were measured, by which of the two gives the TTFT."""
    engine = replace(VLLM, schedules_ahead=ahead)
    benches = [measure(bench(length, load), engine) for length in (0, 3) for load in loads]
    fitted = fit_server(benches, engine=VLLM)
    assert {name: found.schedules_ahead for name, found in fitted.engines.items()} == {"": ahead, "Small": ahead}


def test_a_fit_needs_a_benchmark() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit_server([], engine=VLLM)
