"""Tables on a terminal of 80 columns: names are whole, and so is every number."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from analysis.check.comparison import ComparedPolicy, print_comparison
from analysis.check.validation import PolicyCheck, Validation
from analysis.cli.tables import print_speeds, print_validation
from traces.metrics.speeds import Speed

LABELS = [
    "autoregressive",
    "outcome_hedging:max_branches=12",
    "specbranch:draft_length=3,epsilon=0.2,uses_hrad=False,on_miss=overlap,signal=margin",
    "confidence_stop:threshold=0.35",
]


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(params=[80, 100])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), width=request.param)


def _check(text: str, names: list[str], numbers: list[str], width: int) -> None:
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    words = text.replace(",", " ").split()
    for name in names:
        assert name in words, text
    for number in numbers:
        assert number in text, text


def test_the_comparison_names_its_methods(console: Console) -> None:
    rows = [
        ComparedPolicy(
            family=label.partition(":")[0],
            policy=label,
            temperature=0.7,
            tokens_per_s=1234.5,
            tokens_per_s_interval=(1111.4, 1333.4),
            predicted_tokens_per_s=1250.2,
            speedup_over_autoregressive=1.234,
            speedup_interval=(1.1, 1.3),
            tokens_per_target_forward=3.217,
            rollback_rate=0.41,
            wasted_draft_rate=0.57,
            wasted_target_rate=0.63,
            draft_forwards_per_token=2.468,
            tokens_identical=True,
            rounds_identical=True,
        )
        for label in LABELS
    ]
    print_comparison(console, rows)
    names = [row.family for row in rows]
    _check(_printed(console), names, ["1234", "1.23", "3.22", "41%", "57%", "63%", "2.47"], console.width)


def _speed(label: str) -> Speed:
    return Speed(
        policy=label,
        temperature=0.7,
        tokens_per_s=1234.5,
        interval=(1111.4, 1333.4),
        speedup=1.234,
        speedup_interval=(1.1, 1.35),
        num_prompts=60,
        num_requests=120,
        num_unclean=7,
        tokens_per_target_forward=3.217,
    )


def test_speeds_name_their_policies_and_their_doubt(console: Console) -> None:
    print_speeds(console, "Measured", list(map(_speed, LABELS)))
    names = [label.partition(":")[0] for label in LABELS]
    _check(_printed(console), names, ["1234.5", "1.23", "3.22", "60"], console.width)
    assert "28 of 480 requests ran beside other load" in " ".join(_printed(console).split())


def test_numbers_that_take_all_the_room_leave_the_names_whole() -> None:
    """The name is the last to be cut: where not all fits, numbers go into a second line."""
    speeds = [
        replace(
            _speed(label),
            temperature=0.0001,
            tokens_per_s=1234567.8,
            interval=(1111111.4, 1333333.4),
            speedup=1234.567,
            speedup_interval=(1111.1, 1313.35),
            num_prompts=600000,
            num_unclean=0,
        )
        for label in LABELS
    ]
    console = Console(file=io.StringIO(), width=80)
    print_speeds(console, "Measured", speeds, adjusted=speeds)
    words = _printed(console).replace(",", " ").split()
    assert {label.partition(":")[0] for label in LABELS} <= set(words)
    assert max(map(len, _printed(console).splitlines())) <= 80


def test_validations_name_their_policies(console: Console) -> None:
    checks = [
        PolicyCheck(
            policy=label,
            temperature=0.7,
            predicted_tokens_per_s=1250.2,
            predicted_interval=(1200.0, 1300.0),
            measured_tokens_per_s=1234.5,
            measured_interval=(1111.4, 1333.4),
            relative_error=0.0127,
            latency_error=0.02,
            acceptance_error=0.01,
            speedup_over_autoregressive=1.234,
            speedup_interval=(1.1, 1.3),
            predicted_speedup=1.2,
            adjusted_tokens_per_s=1333.3,
            adjusted_speedup=1.345,
            adjusted_speedup_interval=(1.31, 1.38),
            predicted_speedup_interval=(1.15, 1.25),
            speedup_error=-0.108 if index else -0.013,
            speedup_latency_error=-0.02,
        )
        for index, label in enumerate(LABELS)
    ]
    validation = Validation(
        policies=checks,
        mean_abs_relative_error=0.01,
        worst_abs_relative_error=0.02,
        mean_abs_latency_error=0.01,
        worst_abs_latency_error=0.02,
        regret=0.0,
        tokens_identical=True,
        rounds_identical=True,
        num_rounds_compared=9,
        num_requests_within_rounding=0,
        contention={},
        is_claim=True,
        note="",
        mean_abs_speedup_error=0.084,
        worst_abs_speedup_error=0.108,
        same_policy_difference=0.014,
        interval_coverage=0.75,
        drift_range=(0.74, 1.21),
    )
    print_validation(console, validation)
    names = [label.partition(":")[0] for label in LABELS]
    _check(_printed(console), names, ["1250", "1234", "1333", "-10.8%", "(-1.3%)", "1.34", "1.20"], console.width)
    words = " ".join(_printed(console).split())
    for told in (
        "mean error 8.4%, worst 10.8% (of latencies alone 2.0%)",
        "differs from itself by 1.4%",
        "75% agree within 95%",
    ):
        assert told in words
    assert "moved between 0.74 and 1.21 of its median; adjusted for" in words
