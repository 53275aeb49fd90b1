"""The machine's speed, fitted: known paths are recovered, and what a policy does on its own account stays its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.traces.metrics.made_up_machine import PATHS, POLICIES, SpeedPath, made_up_run, median_speed, true_speed
from traces.folder.run import read_run
from traces.metrics.machine_speed import MachineSpeed, drift_sentence, machine_speed_of
from traces.metrics.speeds import measured_speeds


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("seed", [0, 1])
def test_adjusted_speeds_are_true_where_raw_ones_err(name: str, seed: int) -> None:
    requests, rounds = made_up_run(PATHS[name], seed=seed)
    machine = machine_speed_of(requests, rounds)
    median = median_speed(PATHS[name], float(rounds.end_s.max()))
    errors = {
        kind: [
            speed.tokens_per_s / (true_speed(speed.policy) * median) - 1 for speed in measured_speeds(requests, table)
        ]
        for kind, table in {"raw": rounds, "adjusted": machine.adjusted(rounds)}.items()
    }
    assert max(map(abs, errors["raw"])) > 0.08, errors
    relative = np.array(errors["adjusted"])
    # Its median speed is known to the finest step of the fit only; ratios of policies do not hang on it.
    assert np.abs(relative).max() <= 0.015, errors
    low, high = machine.range
    assert low < 0.8
    assert high > 1.2


def test_the_range_is_that_of_the_machine() -> None:
    requests, rounds = made_up_run(PATHS["waves"])
    low, high = machine_speed_of(requests, rounds).range
    median = median_speed(PATHS["waves"], float(rounds.end_s.max()))
    assert low == pytest.approx(0.65 / median, rel=0.06)
    assert high == pytest.approx(1.35 / median, rel=0.06)


def test_a_machine_that_stands_still_is_left_alone() -> None:
    requests, rounds = made_up_run(lambda time_s: 1.0, num_blocks=30)
    machine = machine_speed_of(requests, rounds)
    low, high = machine.range
    assert high - low < 0.04
    assert machine.unexplained < 0.01


@pytest.mark.parametrize("path", ["still", "waves"])
def test_a_policy_that_is_slow_at_one_time_only_is_not_explained_away(path: str) -> None:
    """One of five takes half as long again for a third of the run. Its adjusted seconds there keep nine tenths of that, and
    no other policy is blamed."""
    slow, extra, spell_s = "fixed_length", 1.5, (20.0, 40.0)

    def slowness(policy: str, time_s: float) -> float:
        return extra if policy == slow and spell_s[0] <= time_s < spell_s[1] else 1.0

    machine_path = PATHS.get(path, lambda time_s: 1.0)
    requests, rounds = made_up_run(machine_path, slowness=slowness, late="")
    machine = machine_speed_of(requests, rounds)
    adjusted = machine.adjusted(rounds)
    policy_of = requests.set_index("request_id").policy
    table = adjusted.assign(
        policy=adjusted.request_id.map(policy_of),
        seconds=adjusted.end_s - adjusted.start_s,
        in_spell=(rounds.start_s >= spell_s[0]) & (rounds.start_s < spell_s[1]),
    )
    means = table.groupby(["policy", "in_spell"]).seconds.mean().unstack()
    ratios = means[True] / means[False]
    assert ratios[slow] == pytest.approx(extra, rel=0.1)
    for policy in POLICIES:
        if policy != slow:
            assert ratios[policy] == pytest.approx(1.0, abs=0.1), policy


def test_drift_faster_than_the_fit_can_follow_is_told() -> None:
    """The speed changes from one request to the next: neighbours do not tell it, and the rest says so."""

    def square_wave(period_s: float) -> SpeedPath:
        return lambda time_s: 1 + 0.5 * float(np.sign(np.sin(2 * np.pi * time_s / period_s)))

    fast, calm = (machine_speed_of(*made_up_run(square_wave(period_s), seed=3)) for period_s in (0.31, 30.0))
    assert fast.unexplained > 0.1
    assert calm.unexplained < 0.03


def test_a_clock_keeps_order_and_spans() -> None:
    machine = MachineSpeed((0.0, 10.0, 20.0), (0.0, np.log(0.5), 0.0))
    times = np.linspace(0, 25, 500)
    mapped = machine.clock(times)
    assert mapped[0] == 0
    assert (np.diff(mapped) > 0).all()
    assert mapped[-1] - machine.clock(20.0) == pytest.approx(5.0)  # held beyond the last knot
    # The integral of exp(linear) over both slopes.
    assert machine.clock(20.0) == pytest.approx(20 * 0.5 / np.log(2), rel=1e-3)
    assert MachineSpeed().clock(times) == pytest.approx(times)


def test_too_little_is_not_adjusted() -> None:
    requests, rounds = made_up_run(PATHS["waves"], num_blocks=1)
    assert machine_speed_of(requests, rounds) == MachineSpeed()


def test_a_sentence_says_how_far_it_moved() -> None:
    assert "between 0.74 and 1.21 of its median" in drift_sentence((0.74, 1.21))
    assert drift_sentence((0.995, 1.004)) == ""


def test_the_tables_of_a_run_are_put_on_the_machines_clock() -> None:
    run = read_run(Path(__file__).parents[2] / "data" / "run_v1")
    slowing = MachineSpeed((0.0, float(run.rounds.end_s.max())), (0.2, -0.2))
    for before in (run.ops, run.rounds, run.requests):
        after = slowing.adjusted(before)
        assert list(before.columns) == list(after.columns)
        changed = [column for column in before.columns if not before[column].equals(after[column])]
        assert len(changed) >= 2
        assert all(column.endswith("_s") for column in changed)
    ops, rounds = slowing.adjusted(run.ops), slowing.adjusted(run.rounds)
    middle = (run.ops.start_s + run.ops.end_s) / 2
    spans = run.ops.end_s - run.ops.start_s
    np.testing.assert_allclose(ops.end_s - ops.start_s, spans * slowing.at(middle), rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(rounds.verify_s / run.rounds.verify_s, slowing.at(run.rounds.end_s), rtol=0.1)
