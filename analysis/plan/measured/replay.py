"""A plan tried on the real server: benchmarks to run with the plan's own acceptance, and what they should give.

The engine is started with vllm-replay.json, which accepts drafts at random by the plan's rates, so that what is compared is
the model of times and of the scheduler alone. `specbranch import --replay` compares what comes back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from analysis.plan.dialects.files import ServedTable
from analysis.plan.measured.benches import VLLM, simulate_bench
from sim.serving.settings import Server
from traces.files import write_text
from traces.importers.server_bench import ServerBench

FILE = "replay.json"
LOADS = (1, 8, 32, 128)
MIN_REQUESTS, ROUNDS = 40, 4  # requests of a run: at least so many, and so many for each place in the batch
_MAX_DIFFERENCE = 0.05  # of lengths, between what was asked for and what was run
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ReplayRun:
    """One benchmark to run, and what is predicted of it. prompt_tokens, output_tokens: of each request."""

    max_concurrency: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    mean_tpot_s: float
    median_ttft_s: float

    def command(self) -> str:
        """As it is typed; random prompts, for acceptance does not look at them."""
        return (
            f"vllm bench serve --model TARGET --dataset-name random --random-input-len {self.prompt_tokens} "
            f"--random-output-len {self.output_tokens} --ignore-eos --num-prompts {self.num_requests} "
            f"--max-concurrency {self.max_concurrency} --request-rate inf --save-result "
            f"--result-filename replay-{self.max_concurrency}.json"
        )


_RUNS = TypeAdapter(list[ReplayRun])


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A run that came back. Errors: predicted over measured, less 1."""

    run: ReplayRun
    measured: ServerBench

    def errors(self) -> Mapping[str, float]:
        """By the names of `ReplayRun`."""
        names = ("output_tokens_per_s", "mean_tpot_s", "median_ttft_s")
        return {name: getattr(self.run, name) / getattr(self.measured, name) - 1 for name in names}

    def row(self) -> dict[str, Any]:
        """For a file."""
        measured = {f"measured_{name}": getattr(self.measured, name) for name in self.errors()}
        return asdict(self.run) | measured | {f"{name}_error": error for name, error in self.errors().items()}


def plan_replay(served: ServedTable, *, kv_tokens: int | None, engine: Server = VLLM) -> list[ReplayRun]:
    """A few concurrencies up to the engine's largest batch, with requests as long as the plan's. Raises ValueError where the
    table was made without lengths of requests.
    """
    if served.joining is None:
        raise ValueError("a replay needs the lengths of prompts and outputs, which this table was made without.")
    prompt, output = (max(round(value), 1) for value in asdict(served.joining).values())
    loads = sorted({min(load, served.max_num_seqs) for load in LOADS})
    if kv_tokens is not None:
        loads = [load for load in loads if load * (prompt + output) <= kv_tokens] or [1]
    longest = max(band.draft_length for band in served.table.bands)
    runs = []
    for load in loads:
        num = max(MIN_REQUESTS, ROUNDS * load)
        asked = ServerBench(
            dataset="random", method=served.method, draft=served.draft or served.method, draft_length=longest,
            kv_tokens=kv_tokens, num_requests=num, max_concurrency=load, arrivals_per_s=math.inf, duration_s=1.0,
            input_tokens=float(prompt * num), output_tokens=float(output * num), output_tokens_per_s=1.0, mean_tpot_s=1.0,
            median_ttft_s=1.0, acceptance=served.acceptance if longest else None,
        )  # fmt: skip
        ran = simulate_bench(asked, served.costs, engine=engine, seed=_SEED, rule=served.table)
        runs.append(
            ReplayRun(
                max_concurrency=load,
                num_requests=num,
                prompt_tokens=prompt,
                output_tokens=output,
                output_tokens_per_s=ran.output_tokens_per_s,
                mean_tpot_s=ran.mean_tpot_s,
                median_ttft_s=ran.median_ttft_s,
            )
        )
    return runs


def write_replay(runs: Sequence[ReplayRun], folder: Path) -> None:
    """replay.json, what is predicted, and replay.sh, the lines to run."""
    write_text(folder / FILE, _RUNS.dump_json(list(runs), indent=2).decode() + "\n")
    head = [
        "#!/bin/sh",
        "# The server, elsewhere: it accepts drafts by the plan's rates, whatever they are.",
        '#   vllm serve TARGET --speculative-config "$(cat vllm-replay.json)"',
        "# Afterwards: specbranch import replay-*.json --replay replay.json --output-dir COMPARED",
        "set -e",
    ]
    write_text(folder / "replay.sh", "\n".join([*head, *(run.command() for run in runs)]) + "\n")


def read_replay(path: Path) -> list[ReplayRun]:
    """What `write_replay` wrote. Raises ValueError, in one line, where the file holds something else."""
    try:
        runs = _RUNS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ValueError(f"{path} does not hold a replay of a plan: {str(error).splitlines()[0]}") from None
    for run in runs:
        values = asdict(run).values()
        if not all(0 < value < math.inf for value in values):
            raise ValueError(f"{path} holds a run with a value that is not a positive number: {run}.")
    return runs


def compare_replay(runs: Sequence[ReplayRun], measured: Sequence[ServerBench]) -> list[Replayed]:
    """Each benchmark that was asked for and came back, by its concurrency.

    Raises ValueError where none did, or one ran other requests than those that were asked for.
    """
    known = {run.max_concurrency: run for run in runs}
    found = [
        Replayed(run=known[bench.max_concurrency], measured=bench)
        for bench in measured
        if bench.max_concurrency in known
    ]
    if not found:
        loads = ", ".join(map(str, known))
        raise ValueError(f"no benchmark has a concurrency of the replay ({loads}); give the results of replay.sh.")
    for each in found:
        for name, asked, got in (
            ("input", each.run.prompt_tokens, each.measured.input_tokens / each.measured.num_requests),
            ("output", each.run.output_tokens, each.measured.output_tokens / each.measured.num_requests),
        ):
            if abs(got / asked - 1) > _MAX_DIFFERENCE:
                raise ValueError(
                    f"the benchmark at concurrency {each.run.max_concurrency} has {got:.0f} {name} tokens a request, but "
                    f"{asked} were asked for; run the lines of replay.sh as they are."
                )
    return found


def replay_sentence(found: Sequence[Replayed]) -> str:
    """The verdict."""
    errors = [each.errors() for each in found]
    throughput, tpot = ([abs(error[name]) for error in errors] for name in ("output_tokens_per_s", "mean_tpot_s"))
    return (
        f"{len(found)} benchmarks of the replay: predicted tokens/s are {fmean(throughput):.1%} off in the mean and "
        f"{max(throughput):.1%} at worst, mean TPOT {fmean(tpot):.1%} and {max(tpot):.1%}."
    )


def write_compared(found: Sequence[Replayed], folder: Path) -> None:
    """replay-compared.json, a row a benchmark."""
    rows = json.dumps([each.row() for each in found], indent=2)
    write_text(folder / "replay-compared.json", rows + "\n")
