"""What benchmarks say beyond a fitted law, and the table that follows from it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from analysis.plan.measured.residuals import residuals_of
from analysis.plan.methods import best_lengths
from tests.analysis.plan.measured.made_up_server import ACCEPTANCE, DRAFT, TARGET, bench
from traces.fits.step_costs import StepCosts

COSTS = StepCosts(target=TARGET, draft=DRAFT)


def test_a_residual_counts_half_where_it_was_measured_and_fades() -> None:
    """Half of it is luck; half of what is left is its own length's; a doubling of the load leaves 1 / e."""
    at = residuals_of([bench(4, 16)], [-0.04]).at  # it took longer than the law says
    seen = math.log(0.96) / 2
    assert at(4, 16) == pytest.approx(seen)
    assert at(3, 16) == pytest.approx(seen / 2)
    assert at(4, 32) == pytest.approx(at(4, 8)) == pytest.approx(seen / math.e)
    assert abs(at(4, 1 << 20)) < 1e-5


def test_two_benchmarks_of_one_cell_say_more_than_one() -> None:
    at = residuals_of([bench(4, 16), bench(4, 16)], [0.03, 0.03]).at
    assert at(4, 16) == pytest.approx(math.log(1.03) * 2 / 3)


def test_a_benchmark_that_the_memory_holds_back_says_nothing() -> None:
    small = replace(bench(4, 16), kv_tokens=1000)
    at = residuals_of([small], [0.5]).at
    assert at(4, 16) == 0.0


def test_a_dip_that_was_measured_is_stepped_over() -> None:
    """A length that the law alone takes at many loads and that was measured to be slow there gives way; none rises again."""

    def lengths(residual: dict[tuple[int, int], float]) -> list[int]:
        table = best_lengths(COSTS, ACCEPTANCE, 6, 100.0, residual=lambda k, n: residual.get((k, n), 0.0))
        return [table.length_at(batch, 0) for batch in range(1, 200)]

    plain = lengths({})
    known = plain[15]
    assert 1 < known < 6
    slow = lengths({(known, batch): -0.1 for batch in range(1, 40)})
    assert known not in slow[:39]
    assert slow == sorted(slow, reverse=True)
    assert lengths({(6, 60): 0.5})[59] < 6  # luck at one load does not lengthen all drafts before it
