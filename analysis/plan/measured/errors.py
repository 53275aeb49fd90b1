"""Predicted against measured benchmarks of a server: errors, regret of the chosen draft length, and signs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

MIN_TTFT_MS = 300.0  # below, TTFT is the client's and the network's as much as the server's
MIN_GAIN = 0.05  # smaller measured gains of speculation have no sure sign
TIE = 0.02  # predictions closer than this are equal: their mean error on a measured server, and the luck of its runs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One benchmark, measured and predicted.

    dataset, method, draft, draft_length, max_concurrency, kv_tokens: as in `traces.importers.server_bench.ServerBench`; the
    measurements too, TPOT being the mean and TTFT the median. is_fitted: the costs were fitted to it. num_preemptions: of
    requests, in the simulation. mean_running: requests in the batch there, over the steps.
    """

    dataset: str
    method: str
    draft: str
    draft_length: int
    max_concurrency: int
    kv_tokens: int | None
    is_fitted: bool
    measured_output_tok_s: float
    measured_mean_tpot_ms: float
    measured_median_ttft_ms: float
    predicted_output_tok_s: float
    predicted_mean_tpot_ms: float
    predicted_median_ttft_ms: float
    num_preemptions: float = 0.0
    mean_running: float = 0.0

    @property
    def throughput_error(self) -> float:
        """Predicted over measured, less 1; of output tokens a second."""
        return self.predicted_output_tok_s / self.measured_output_tok_s - 1

    @property
    def tpot_error(self) -> float:
        """Of the mean TPOT."""
        return self.predicted_mean_tpot_ms / self.measured_mean_tpot_ms - 1

    @property
    def ttft_error(self) -> float:
        """Of the median TTFT."""
        return self.predicted_median_ttft_ms / self.measured_median_ttft_ms - 1

    def row(self) -> dict[str, Any]:
        """For a table."""
        errors = ("throughput_error", "tpot_error", "ttft_error")
        return asdict(self) | {name: getattr(self, name) for name in errors}


@dataclass(frozen=True, kw_only=True)
class CheckErrors:
    """Errors of the predictions, over the benchmarks that were not fitted (over all where all were).

    mean_abs_*, worst_abs_*: |predicted / measured - 1| of output tokens a second and of mean TPOT. median_abs_ttft_error: of
    the median TTFT, over the benchmarks where that exceeds 300 ms; None where none does. worst_k_regret: over drafts and
    concurrencies, the throughput lost by choosing the draft length (0 included) by prediction. num_wrong_signs: benchmarks
    with a draft where speculation was predicted to pay and did not, or the reverse; only of those with a measured difference
    above 5%. Regret and signs also count fitted benchmarks.
    """

    mean_abs_throughput_error: float
    worst_abs_throughput_error: float
    mean_abs_tpot_error: float
    worst_abs_tpot_error: float
    median_abs_ttft_error: float | None
    worst_k_regret: float
    num_wrong_signs: int
    num_fitted: int
    num_predicted: int


def errors_of(cells: Sequence[Cell]) -> CheckErrors:
    """Of at least one cell."""
    judged = [cell for cell in cells if not cell.is_fitted] or cells
    throughput, tpot = ([abs(getattr(cell, name)) for cell in judged] for name in ("throughput_error", "tpot_error"))
    ttft = [abs(cell.ttft_error) for cell in judged if cell.measured_median_ttft_ms > MIN_TTFT_MS]
    num_fitted = sum(cell.is_fitted for cell in cells)
    return CheckErrors(
        mean_abs_throughput_error=fmean(throughput),
        worst_abs_throughput_error=max(throughput),
        mean_abs_tpot_error=fmean(tpot),
        worst_abs_tpot_error=max(tpot),
        median_abs_ttft_error=median(ttft) if ttft else None,
        worst_k_regret=max(regrets(cells).values(), default=0.0),
        num_wrong_signs=sum(has_wrong_sign(cell, cells) for cell in cells),
        num_fitted=num_fitted,
        num_predicted=len(cells) - num_fitted,
    )


def chosen_length(throughputs: Mapping[int, float]) -> int:
    """The draft length to choose, of predicted throughputs by draft length.

    The shortest that is as good as the best within TIE, which predictions cannot tell apart: it holds the least
    memory and loses the least where acceptance falls (as in the one-standard-error rule of Breiman et al. 1984).

    >>> chosen_length({0: 50.0, 3: 99.5, 4: 100.0})
    3
    """
    best = max(throughputs.values())
    return min(length for length, value in throughputs.items() if value >= (1 - TIE) * best)


def regrets(cells: Sequence[Cell]) -> dict[tuple[str, str, int], float]:
    """By dataset, draft and concurrency: 1 - measured throughput of the chosen length / that of the best.

    Decoding without speculation is a choice where it was measured under the same load.
    """
    found = {}
    for dataset, draft, load in {(c.dataset, c.draft, c.max_concurrency) for c in cells if c.draft_length}:
        own = [cell for cell in cells if (cell.dataset, cell.draft, cell.max_concurrency) == (dataset, draft, load)]
        choices: dict[int, list[Cell]] = {}
        for cell in {id(cell): cell for cell in [*own, *plain_cells(cells, dataset, load)]}.values():
            choices.setdefault(cell.draft_length, []).append(cell)
        measured = {k: fmean(cell.measured_output_tok_s for cell in same) for k, same in choices.items()}
        chosen = chosen_length({k: fmean(c.predicted_output_tok_s for c in same) for k, same in choices.items()})
        found[dataset, draft, load] = 1 - measured[chosen] / max(measured.values())
    return found


def has_wrong_sign(cell: Cell, cells: Iterable[Cell]) -> bool:
    """Whether speculation gains or loses more than 5% here, and the prediction says the reverse."""
    plain = plain_cells(cells, cell.dataset, cell.max_concurrency)
    if not cell.draft_length or not plain:
        return False
    gain = cell.measured_output_tok_s / fmean(other.measured_output_tok_s for other in plain) - 1
    predicted = cell.predicted_output_tok_s / fmean(other.predicted_output_tok_s for other in plain) - 1
    return abs(gain) > MIN_GAIN and gain * predicted <= 0


def plain_cells(cells: Iterable[Cell], dataset: str, max_concurrency: int) -> list[Cell]:
    """Without speculation, under this load."""
    return [c for c in cells if not c.draft_length and (c.dataset, c.max_concurrency) == (dataset, max_concurrency)]
