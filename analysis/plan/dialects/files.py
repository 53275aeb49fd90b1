"""A table of draft lengths as files for three engines, and beside them what each row gains and what was not modelled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.plan.dialects.rows import rows_by_batch
from analysis.plan.dialects.sglang import write_sglang
from analysis.plan.dialects.tensorrt_llm import write_tensorrt_llm
from analysis.plan.dialects.vllm import write_vllm
from sim.serving.rounds.base import ServerLoad
from sim.serving.rounds.length_rules import GoodputRule, Joining, LengthTable
from traces.files import write_text
from traces.fits.step_costs import AcceptanceByPosition, StepCosts

NOT_MODELLED = """\
- At K = 0 vLLM still runs the draft to keep its cache in step (vLLM issue 49986): where a row has K = 0, plain decoding of a
  server without a draft is faster than what you will get.
- TensorRT-LLM leaves the draft's cache behind at K = 0 (its issue 16888), so that acceptance falls when the load does.
- A change of K costs nothing here; engines may replay another graph, and flap at a bound. Measure at the bounds.
- Acceptance is one law for all requests, whatever their text, context and temperature.
"""


@dataclass(frozen=True, kw_only=True)
class ServedTable:
    """A table and what it was made from. draft: name of the draft's model, "" for none. method: in vLLM's words.
    mean_context: tokens of a running request in the cache. joining: prompts read in the same steps. possible: other
    costs that the measurements leave possible, for intervals; () where nobody knows. residual: (draft length, batch) log of
    measured over predicted goodput; None where nothing was measured. max_num_seqs: the engine's largest batch.
    """

    table: LengthTable
    costs: StepCosts
    acceptance: AcceptanceByPosition
    mean_context: float
    joining: Joining | None = None
    possible: tuple[StepCosts, ...] = ()
    residual: Callable[[int, int], float] | None = None
    max_num_seqs: int
    draft: str
    method: str = "draft_model"

    def gain(self, batch: int, length: int) -> float:
        """Tokens a second of this length over those without speculation, less 1, for a batch of this size."""
        return self._gain(self.costs, batch, length)

    def interval(self, batch: int, length: int) -> tuple[float, float] | None:
        """95% of `gain`, by what the fit of the step costs leaves open; acceptance is as it was counted."""
        if not self.possible:
            return None
        low, high = np.quantile([self._gain(costs, batch, length) for costs in self.possible], [0.025, 0.975])
        return float(low), float(high)

    def rows(self) -> list[dict[str, object]]:
        """For programs: a row a band, with the gains at both of its ends and their intervals."""
        return [
            {
                "first": first,
                "last": last,
                "draft_length": length,
                "gain_first": self.gain(first, length),
                "gain_last": self.gain(last, length),
                "gain_first_95": self.interval(first, length),
                "gain_last_95": self.interval(last, length),
            }
            for first, last, length in self.bands()
        ]

    def bands(self) -> list[tuple[int, int, int]]:
        """(first, last, K) up to the engine's largest batch."""
        return rows_by_batch(self.table, self.max_num_seqs)

    def told(self, batch: int, length: int) -> str:
        """A gain in words, with its interval where there is one."""
        interval = self.interval(batch, length) if length else None
        between = "" if interval is None else f" [{interval[0]:+.0%}, {interval[1]:+.0%}]"
        return f"{self.gain(batch, length):+.0%}{between}"

    def _gain(self, costs: StepCosts, batch: int, length: int) -> float:
        if not length:
            return 0.0
        rule = GoodputRule(costs, self.acceptance.marginal(length), joining=self.joining)
        gain = rule.gain(ServerLoad.alike(batch, self.mean_context), length)
        if self.residual is not None:
            gain *= math.exp(self.residual(length, batch) - self.residual(0, batch))
        return gain - 1


def write_engines(served: ServedTable, folder: Path) -> list[str]:
    """vllm.json, vllm-replay.json, sglang.json, tensorrt_llm.json and engines.md; returns the names of those written.

    A table that never speculates writes none: the engine is then started without a draft. An engine that cannot say the table,
    or has no such method, is left out, and engines.md says why.
    """
    table, seqs = served.table, served.max_num_seqs
    rows = served.bands()
    longest = max(length for _, _, length in rows)
    if not longest:
        return []
    model, method = served.draft, served.method
    rates = served.acceptance.marginal(longest)
    writers: dict[str, Callable[[], str]] = {
        "vllm.json": lambda: write_vllm(table, model=model, method=method, max_num_seqs=seqs),
        "vllm-replay.json": lambda: write_vllm(table, model=model, method=method, max_num_seqs=seqs, acceptance=rates),
        "sglang.json": lambda: write_sglang(table, max_num_seqs=seqs),
        "tensorrt_llm.json": lambda: write_tensorrt_llm(table, model=model, method=method, max_num_seqs=seqs),
    }
    written, missing = [], []
    for name, write in writers.items():
        try:
            text = write()
        except ValueError as error:
            missing.append(f"- {name} is not written: {error}\n")
            continue
        write_text(folder / name, text)
        written.append(name)
    write_text(folder / "engines.md", _notes(served, rows) + "".join(missing))
    return [*written, "engines.md"]


def _notes(served: ServedTable, rows: list[tuple[int, int, int]]) -> str:
    """How to start each engine, what each row gains, and what nobody computed."""
    longest = max(length for _, _, length in rows)
    table = "".join(
        f"| {first} to {last} | {length} | {served.told(first, length)} | {served.told(last, length)} |\n"
        for first, last, length in rows
    )
    sure = (
        "in brackets 95%, by what the measurements leave open of the step costs"
        if served.possible
        else "without intervals, for these step costs come without any"
    )
    steps = f"--speculative-num-steps {longest} --speculative-num-draft-tokens {longest + 1} --speculative-eagle-topk 1"
    return (
        "# Draft lengths by load, for three engines\n\n"
        "| running requests | K | gain at the first | gain at the last |\n|---|---|---|---|\n"
        f"{table}\n"
        f"Gain: tokens a second of the whole batch over plain decoding, by the step costs and acceptance of this plan at "
        f"{served.mean_context:.0f} tokens a request; {sure}.\n\n"
        '    vllm serve TARGET --speculative-config "$(cat vllm.json)"\n'
        '    vllm serve TARGET --speculative-config "$(cat vllm-replay.json)"   # accepts by the plan\'s rates: times only\n'
        f"    python -m sglang.launch_server --model-path TARGET --speculative-algorithm EAGLE3 {steps} \\\n"
        "        --speculative-draft-model-path DRAFT --speculative-adaptive --speculative-adaptive-config sglang.json\n"
        "    tensorrt_llm.json goes under `speculative_config` in the options file of `trtllm-serve`, release 1.4\n\n"
        "SGLang follows its file with EAGLE and EAGLE3 only, and rounds a batch up to a captured graph first. vLLM ignores "
        "its table with data parallel above 1.\n\n"
        f"Not modelled:\n\n{NOT_MODELLED}"
    )
