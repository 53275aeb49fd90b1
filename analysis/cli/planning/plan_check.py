"""`specbranch plan --check`: a measured server, predicted from a part of what was measured."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from analysis.cli.options import console


def check_measured(path: Path, output_dir: Path, *, fit_k: str, fit_concurrency: str, workers: int) -> None:
    """A table of benchmarks, or requests that a server recorded one by one: fit a part, predict the rest, print the errors."""
    from traces.importers.traffic.catalog import holds_measured

    if holds_measured(path):
        _check_requests(path, output_dir, workers)
        return
    lengths, concurrencies = _whole_numbers("--fit-k", fit_k), _whole_numbers("--fit-concurrency", fit_concurrency)
    _check_benches(path, output_dir, lengths, concurrencies, workers)


def _check_benches(path: Path, output_dir: Path, fit_k: list[int], fit_concurrency: list[int], workers: int) -> None:
    """A table of benchmarks with and without drafts."""
    from analysis.explore.work.scale_out import Workers
    from analysis.plan.measured.check import check_server_table

    result = check_server_table(path, output_dir, fit_k, fit_concurrency, workers=Workers(count=workers))
    errors = result.errors
    predicted = sum(not cell.is_fitted for cell in result.cells)
    console.print(
        f"Throughput of {predicted} benchmarks that were not fitted: {errors.mean_abs_throughput_error:.1%} off in the mean, "
        f"{errors.worst_abs_throughput_error:.1%} at worst; choosing K by it costs at most {errors.worst_k_regret:.1%}.",
        style="bold",
        highlight=False,
    )
    table = _table()
    table.add_row(
        "output tokens/s", f"{errors.mean_abs_throughput_error:.1%}", f"{errors.worst_abs_throughput_error:.1%}"
    )
    table.add_row("mean TPOT", f"{errors.mean_abs_tpot_error:.1%}", f"{errors.worst_abs_tpot_error:.1%}")
    if errors.median_abs_ttft_error is not None:
        table.add_row("median TTFT (the median)", f"{errors.median_abs_ttft_error:.1%}", "")
    table.add_row("wrong about whether it pays", str(errors.num_wrong_signs), "")
    console.print(table)
    console.print(f"a row a benchmark: {output_dir / 'cells.parquet'}", highlight=False)
    for name in sorted(path.name for path in output_dir.glob("costs-*.json")):
        console.print(
            f"next: specbranch plan --costs {output_dir / name} --kv-tokens ...", highlight=False, soft_wrap=True
        )


def _check_requests(path: Path, output_dir: Path, workers: int) -> None:
    """Requests recorded one by one, without speculation."""
    from analysis.explore.work.scale_out import Workers
    from analysis.plan.inputs import new_folder
    from analysis.plan.measured.trace_check import check_trace, write_trace_check
    from traces.importers.traffic.catalog import read_measured

    measured = read_measured(path)
    new_folder(output_dir)
    check = check_trace(measured, workers=Workers(count=workers))
    write_trace_check(check, output_dir)
    errors = check.errors
    console.print(
        f"The second half of the requests, from the first: mean TPOT {errors.mean_tpot_error:+.1%}, p95 "
        f"{errors.p95_tpot_error:+.1%}; mean TTFT {errors.mean_ttft_error:+.1%}.",
        style="bold",
        highlight=False,
    )
    memory = "no limit of memory" if errors.kv_tokens is None else f"a memory of {errors.kv_tokens} tokens"
    console.print(
        f"{errors.num_predicted} requests predicted, {errors.num_fitted} fitted; the fit took {memory} and up to "
        f"{errors.max_num_seqs} requests at once. Step costs: {output_dir / 'step_costs.json'}",
        highlight=False,
    )


def _table() -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("error of")
    for name in ("mean", "worst"):
        table.add_column(name, justify="right")
    return table


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of whole numbers; write 1,5.") from None
