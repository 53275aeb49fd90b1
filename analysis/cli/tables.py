"""Small tables for people: speeds and validations, printed with rich."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.check.validation import Validation
from sim.decoding.policies.catalog import POLICIES, parse_policy, split_label
from traces.metrics.machine_speed import MachineSpeed, drift_sentence
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
    name = split_label(policy)[0]
    if "draft_length" in settings:
        name += f" {settings.pop('draft_length')}"
    return ", ".join([name, *(_in_words(key, value) for key, value in settings.items() if value != defaults[key])])


def pasted_label(policy: str) -> str:
    """A policy for --policy: settings at their defaults left out, except the draft length.

    >>> pasted_label("specbranch:draft_length=6,max_branches=4,epsilon=0.2,uses_hrad=True,on_miss=serial")
    'specbranch:draft_length=6,epsilon=0.2'
    """
    chosen: Any = parse_policy(policy)
    settings = [
        f"{field.name}={value}"
        for field in dataclasses.fields(chosen)
        if (value := getattr(chosen, field.name)) != field.default or field.name == "draft_length"
    ]
    name = split_label(policy)[0]
    return f"{name}:{','.join(settings)}" if settings else name


def print_columns(console: Console, text: str) -> None:
    """What the columns of the table above it say, in a line below it."""
    console.print(text, style="dim", highlight=False, markup=False)


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


def print_speeds(
    console: Console,
    title: str,
    speeds: Sequence[Speed],
    machine: MachineSpeed | None = None,
    adjusted: Sequence[Speed] = (),
    *,
    explains: bool = True,
) -> None:
    """Speeds with 95% intervals over prompts.

    machine: its speed; adjusted: the same speeds for it, in the same order: they stand beside the raw ones, with
    their speed-ups. explains: whether a line below says what the columns are.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    raw = ("tokens/s", "adjusted [95%]") if adjusted else ("tokens/s [95%]",)
    for name in ("policy", "T", *raw, "speed-up [95%]", "tokens/forward", "n"):
        _add_column(table, name)
    for speed, best in zip(speeds, adjusted or speeds, strict=True):
        table.add_row(
            short_label(speed.policy),
            f"{speed.temperature:g}",
            *([f"{speed.tokens_per_s:.1f}"] if adjusted else []),
            f"{best.tokens_per_s:.1f} {_interval(best.interval, 1)}",
            _with_interval(best.speedup, best.speedup_interval),
            f"{speed.tokens_per_target_forward:.2f}",
            str(speed.num_prompts),
        )
    console.print(table)
    if explains:
        print_columns(
            console,
            ("adjusted: to the machine's median speed. " if adjusted else "")
            + "speed-up: over plain decoding. tokens/forward: a target forward gives so many (vLLM: mean acceptance length). "
            "n: prompts.",
        )
    if machine and machine.sentence:
        console.print(machine.sentence, highlight=False)
    print_doubt(
        console, doubt_of(sum(speed.num_unclean for speed in speeds), sum(speed.num_requests for speed in speeds))
    )


def print_doubt(console: Console, *doubts: str) -> None:
    """Why numbers support no claim, in a line each; nothing where there is no doubt."""
    for doubt in filter(None, doubts):
        console.print(f"[yellow]{escape(doubt)}[/yellow]", highlight=False)


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Lines that may be copied: they are never broken."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_reason(console: Console, reason: str) -> None:
    """Why tokens or rounds are not identical; nothing where they are."""
    if reason:
        console.print(f"[red]{escape(reason)}[/red]", highlight=False)


def print_validation(console: Console, validation: Validation) -> None:
    """Predicted beside measured, and what the comparison amounts to."""
    print_checks(console, validation)
    for line in validation_lines(validation):
        console.print(line, highlight=False, markup=False)
    print_reason(console, validation.reason)
    print_doubt(console, validation.note)


def print_checks(console: Console, validation: Validation) -> None:
    """The table: speed-ups measured (adjusted where that is known) and predicted, and the speeds that they come from."""
    table = Table(
        title="Measured beside predicted", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("policy", "T", "speed-up [95%]", "pred.", "error", "tok/s", "raw", "pred."):
        _add_column(table, name)
    floor = validation.same_policy_difference or 0.0
    for check in sorted(validation.policies, key=lambda check: (check.temperature, -check.speed)):
        error = check.speedup_error
        told = "" if error is None else f"{error:+.1%}"
        table.add_row(
            short_label(check.policy),
            f"{check.temperature:g}",
            _with_interval(check.speedup, check.best_speedup_interval),
            "" if check.predicted_speedup is None else f"{check.predicted_speedup:.2f}",
            f"({told})" if error is not None and abs(error) <= floor else told,
            *(f"{value:.0f}" for value in (check.speed, check.measured_tokens_per_s, check.predicted_tokens_per_s)),
        )
    console.print(table)
    print_columns(
        console,
        "speed-up over plain decoding, as measured and as predicted (pred.); error: predicted over measured. tok/s: adjusted "
        "to the machine's median speed; raw: as measured.",
    )


def validation_lines(validation: Validation) -> list[str]:
    """What a validation amounts to, in a sentence each."""
    lines = []
    if validation.mean_abs_speedup_error is not None and validation.worst_abs_speedup_error is not None:
        alone = [abs(error) for check in validation.policies if (error := check.speedup_latency_error) is not None]
        lines.append(
            f"speed-ups: mean error {validation.mean_abs_speedup_error:.1%}, worst {validation.worst_abs_speedup_error:.1%}"
            + (f" (of latencies alone {sum(alone) / len(alone):.1%})" if alone else "")
            + (f"; {covered:.0%} agree within 95%" if (covered := validation.interval_coverage) is not None else "")
        )
    if (floor := validation.same_policy_difference) is not None:
        lines.append(
            f"one policy, measured twice, differs from itself by {floor:.1%}: errors in brackets are below that"
        )
    lines.append(
        f"tokens/s: mean error {validation.mean_abs_relative_error:.1%}, worst {validation.worst_abs_relative_error:.1%} "
        f"(of latencies alone {validation.mean_abs_latency_error:.1%}); regret {validation.regret:.1%}"
    )
    if validation.drift_range and (drift := drift_sentence(validation.drift_range)):
        lines.append(drift)
    within = validation.num_requests_within_rounding
    lines.append(
        f"tokens identical: {_yes(validation.tokens_identical)}; "
        f"replayed rounds identical: {_yes(validation.rounds_identical)} ({validation.num_rounds_compared} rounds"
        + (f", {within} requests within rounding)" if within else ")")
    )
    return lines


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" {_interval(interval, 2)}" if interval else "")


def _interval(interval: tuple[float, float], digits: int) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]".replace("[", "\\[")


def _yes(claim: bool | None) -> str:
    return "not claimed" if claim is None else "yes" if claim else "NO"
