"""`specbranch advise`: the best draft length from a few numbers, at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.options import MAX_TOKENS, console, within

if TYPE_CHECKING:
    from analysis.plan.advice import LengthAdvice
    from sim.serving.costs import SummedModel

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def advise(
    per_position: Annotated[
        str,
        typer.Option(
            help="Share of drafts accepted at positions 1, 2, ... as engines print them, such as 0.78,0.65,0.5, or the "
            "acceptance.json of `specbranch import`."
        ),
    ],
    target_ms: Annotated[
        float | None,
        typer.Option(callback=within(1e-6, 1e6), help="A step without a draft takes so many milliseconds."),
    ] = None,
    draft_ms: Annotated[
        float | None, typer.Option(callback=within(0, 1e6), help="A draft token takes so many milliseconds.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="Take step costs from this file of `specbranch plan`, and answer for batches as well."),
    ] = None,
    context: Annotated[
        int,
        typer.Option(callback=within(0, MAX_TOKENS), help="With --costs: a request has so many tokens in its cache."),
    ] = 1024,
    max_length: Annotated[
        int | None,
        typer.Option(
            callback=within(1, 32),
            help="Look at drafts of up to this many tokens; by default two beyond the positions.",
        ),
    ] = None,
) -> None:
    """Say which draft length is best for one request, and for a batch where step costs are known."""
    from analysis.plan.advice import ConstantTimes, advise_one_request, best_length
    from analysis.plan.numbers import acceptance_and_record, costs_from

    acceptance, record = acceptance_and_record(per_position, "--per-position")
    model: SummedModel
    if costs is not None:
        if target_ms is not None or draft_ms is not None:
            raise ValueError("--costs already says what a step takes; leave out --target-ms and --draft-ms.")
        model = costs_from(costs)
    elif target_ms is None or draft_ms is None:
        raise ValueError("give --target-ms and --draft-ms, or --costs FILE of `specbranch plan`.")
    else:
        model = ConstantTimes(1e-3 * target_ms, 1e-3 * draft_ms)
    only_mean = None if record is None or record.marginal else record  # then only bounds can be told
    known = len(acceptance.conditional) if only_mean is None else only_mean.draft_length or 1
    longest = max_length or min(known + 2, 32)
    rows = advise_one_request(model, acceptance, max_length=longest, context=context)
    _print_one(rows)
    if only_mean is not None:
        low, high = (
            best_length(advise_one_request(model, bound, max_length=known, context=context)).draft_length
            for bound in only_mean.bounds()
        )
        console.print(
            f"A mean length leaves the best K open: it may be {min(low, high)} to {max(low, high)}, by where drafts fail.",
            highlight=False,
        )
    if costs is not None:
        from analysis.plan.advice import advise_batches

        best = advise_batches(model, acceptance, BATCHES, max_length=longest, context=context)
        table = " ".join(f"{row.batch}: K = {row.draft_length} ({row.speedup:.2f}x)," for row in best).rstrip(",")
        console.print(f"\nby running requests, with {context} tokens each:", highlight=False)
        console.print(table, highlight=False)
        console.print("for a traffic, objectives and memory: specbranch plan --costs", style="dim", highlight=False)


def _print_one(rows: list[LengthAdvice]) -> None:
    """The verdict, then a row a length."""
    from rich.table import Table

    from analysis.plan.advice import MIN_GAIN, best_length

    best, overlapped = best_length(rows), best_length(rows, overlapped=True)
    if best.draft_length:
        text = (
            f"K = {best.draft_length}: one request decodes {best.speedup:.2f} times as fast, "
            f"{1e3 * best.seconds_per_token:.3g} instead of {1e3 * rows[0].seconds_per_token:.3g} ms a token."
        )
    else:
        text = "Do not speculate: no draft length is faster than plain decoding for one request."
    console.print(text, style="bold", highlight=False)
    if overlapped.draft_length and overlapped.overlapped_speedup > best.speedup * (1 + MIN_GAIN):
        console.print(
            f"With the draft on a device of its own, overlapped (PEARL): K = {overlapped.draft_length}, "
            f"{overlapped.overlapped_speedup:.2f} times.",
            style="bold",
            highlight=False,
        )
    longer = max(rows, key=lambda row: row.speedup)
    if longer.is_guess and longer.speedup > best.speedup * (1 + MIN_GAIN):
        console.print(
            f"Longer may be better: K = {longer.draft_length} reaches {longer.speedup:.2f} if acceptance goes on as it ends; "
            "measure it.",
            highlight=False,
        )
    table = Table(box=None, pad_edge=False)
    for name in ("K", "tokens/step", "ms/token", "serial", "overlapped"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.draft_length}{'?' if row.is_guess else ''}",
            f"{row.tokens_per_step:.2f}",
            f"{1e3 * row.seconds_per_token:.2f}",
            f"{row.speedup:.2f}",
            f"{row.overlapped_speedup:.2f}" if row.draft_length else "-",
            style="dim" if row.is_guess else "",
        )
    console.print(table)
    console.print(
        "K: draft length (num_speculative_tokens). tokens/step: mean acceptance length. serial, overlapped: speed-up with the "
        "draft before, or beside, the target.",
        style="dim",
        highlight=False,
    )
    if any(row.is_guess for row in rows):
        console.print(
            "?: beyond the measured positions the last conditional chance holds.", style="dim", highlight=False
        )
