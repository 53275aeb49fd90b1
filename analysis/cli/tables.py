"""Small tables for people: speeds and validations, printed with rich."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.check.validate import Validation
from sim.decoding.policies.catalog import POLICIES, parse_policy
from traces.metrics.speeds import Speed, doubt_of

MIN_NAME_WIDTH = max(map(len, POLICIES)) + 1  # with a comma


def short_label(policy: str) -> str:
    """A policy for a narrow column: its name, and the settings that are not at their defaults.

    >>> short_label("fixed_length:draft_length=6")
    'fixed_length 6'
    >>> short_label("specbranch:draft_length=3,epsilon=0.2,uses_hrad=False,on_miss=overlap,signal=margin")
    'specbranch 3, epsilon 0.2, no H-RAD, overlap on miss, margin signal'
    """
    chosen = parse_policy(policy)
    assert dataclasses.is_dataclass(chosen)
    settings = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    defaults = {field.name: field.default for field in dataclasses.fields(chosen)}
    name = policy.partition(":")[0]
    if "draft_length" in settings:
        name += f" {settings.pop('draft_length')}"
    return ", ".join([name, *(_in_words(key, value) for key, value in settings.items() if value != defaults[key])])


def _in_words(name: str, value: object) -> str:
    words = name.removeprefix("is_").removeprefix("uses_").replace("_", " ").replace("hrad", "H-RAD")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value:.3g}" if isinstance(value, int | float) else f"{value} {words}"


def _add_column(table: Table, name: str) -> None:
    """A column of numbers, or of policies, which are the last to be cut: a label breaks between words at most."""
    is_name = name == "policy"
    table.add_column(
        name.replace("[", "\\["), justify="left" if is_name else "right", min_width=MIN_NAME_WIDTH if is_name else None
    )


def print_speeds(console: Console, title: str, speeds: Sequence[Speed]) -> None:
    """Speeds with 95% intervals over prompts."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("policy", "T", "tokens/s [95%]", "speed-up [95%]", "tokens/forward", "n"):
        _add_column(table, name)
    for speed in speeds:
        table.add_row(
            short_label(speed.policy),
            f"{speed.temperature:g}",
            f"{speed.tokens_per_s:.1f} {_interval(speed.interval, 1)}",
            ""
            if speed.speedup is None or speed.speedup_interval is None
            else f"{speed.speedup:.2f} {_interval(speed.speedup_interval, 2)}",
            f"{speed.tokens_per_target_forward:.2f}",
            str(speed.num_prompts),
        )
    console.print(table)
    print_doubt(
        console, doubt_of(sum(speed.num_unclean for speed in speeds), sum(speed.num_requests for speed in speeds))
    )


def print_doubt(console: Console, *doubts: str) -> None:
    """Why numbers support no claim, in a line each; nothing where there is no doubt."""
    for doubt in filter(None, doubts):
        console.print(f"[yellow]{escape(doubt)}[/yellow]", highlight=False)


def print_reason(console: Console, reason: str) -> None:
    """Why tokens or rounds are not identical; nothing where they are."""
    if reason:
        console.print(f"[red]{escape(reason)}[/red]", highlight=False)


def print_validation(console: Console, validation: Validation) -> None:
    """Predicted beside measured, and what the comparison amounts to."""
    table = Table(title="Predicted against measured, tokens/s", title_justify="left", box=None, pad_edge=False)
    for name in ("policy", "T", "predicted", "measured [95%]", "error", "latency's", "speed-up"):
        _add_column(table, name)
    for check in validation.policies:
        speedup = check.speedup_over_autoregressive
        table.add_row(
            short_label(check.policy),
            f"{check.temperature:g}",
            f"{check.predicted_tokens_per_s:.1f}",
            f"{check.measured_tokens_per_s:.1f} {_interval(check.measured_interval, 1)}",
            f"{check.relative_error:+.1%}",
            f"{check.latency_error:+.1%}",
            "" if speedup is None else f"{speedup:.2f}",
        )
    console.print(table)
    console.print(
        f"mean error {validation.mean_abs_relative_error:.1%}, worst {validation.worst_abs_relative_error:.1%}, "
        f"regret {validation.regret:.1%}; tokens identical: {_yes(validation.tokens_identical)}; "
        f"replayed rounds identical: {_yes(validation.rounds_identical)} ({validation.num_rounds_compared} rounds"
        + (f", {within} requests within rounding)" if (within := validation.num_requests_within_rounding) else ")")
    )
    print_reason(console, validation.reason)
    print_doubt(console, validation.note)


def _interval(interval: tuple[float, float], digits: int) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]".replace("[", "\\[")


def _yes(claim: bool | None) -> str:
    return "not claimed" if claim is None else "yes" if claim else "NO"
