"""Small tables for people: speeds and validations, printed with rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from analysis.validation import Validation
from traces.speeds import Speed


def short_label(policy: str) -> str:
    """A policy label for a narrow column: `fixed_length:draft_length=4` becomes `fixed_length 4`."""
    name, _, settings = policy.partition(":")
    values = [part.partition("=")[2] for part in settings.split(",") if part]
    return " ".join([name, *values])


def print_speeds(console: Console, title: str, speeds: Sequence[Speed]) -> None:
    """Speeds with 95% intervals over prompts."""
    table = Table(title=title, title_justify="left")
    for name in ("policy", "T", "tokens/s", "95% interval", "speed-up", "95% interval", "tokens/forward", "prompts"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for speed in speeds:
        table.add_row(
            short_label(speed.policy),
            f"{speed.temperature:g}",
            f"{speed.tokens_per_s:.1f}",
            _interval(speed.interval, 1),
            "" if speed.speedup is None else f"{speed.speedup:.2f}",
            "" if speed.speedup_interval is None else _interval(speed.speedup_interval, 2),
            f"{speed.tokens_per_target_forward:.2f}",
            str(speed.num_prompts),
        )
    console.print(table)


def print_validation(console: Console, validation: Validation) -> None:
    """Predicted beside measured, and what the comparison amounts to."""
    table = Table(title="Predicted against measured", title_justify="left")
    for name in ("policy", "T", "predicted tok/s", "measured tok/s", "95% interval", "error", "of it latency", "speed-up"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for check in validation.policies:
        speedup = check.speedup_over_autoregressive
        table.add_row(
            short_label(check.policy),
            f"{check.temperature:g}",
            f"{check.predicted_tokens_per_s:.1f}",
            f"{check.measured_tokens_per_s:.1f}",
            _interval(check.measured_interval, 1),
            f"{check.relative_error:+.1%}",
            f"{check.latency_error:+.1%}",
            "" if speedup is None else f"{speedup:.2f}",
        )
    console.print(table)
    console.print(
        f"mean error {validation.mean_abs_relative_error:.1%}, worst {validation.worst_abs_relative_error:.1%}, "
        f"regret {validation.regret:.1%}; tokens identical: {_yes(validation.tokens_identical)}; "
        f"replayed rounds identical: {_yes(validation.rounds_identical)} ({validation.num_rounds_compared} rounds)"
    )
    if validation.note:
        console.print(f"[yellow]{validation.note}[/yellow]")


def _interval(interval: tuple[float, float], digits: int) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]".replace("[", "\\[")


def _yes(claim: bool) -> str:
    return "yes" if claim else "NO"
