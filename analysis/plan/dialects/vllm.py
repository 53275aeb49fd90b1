"""vLLM: the value of `--speculative-config`, with `num_speculative_tokens_per_batch_size` as closed ranges.

Rules of the engine (vllm/config/speculative.py and v1/spec_decode/dynamic/utils.py, versions up to 0.32): rows
[first, last, K] with both ends included, sorted, without overlap, the first one from 1; a gap and the tail carry the K before
them; K is cut to `num_speculative_tokens`, which is above 0. The table is switched off with data parallel above 1, was tested
by its makers with EAGLE, EAGLE-3 and DFlash, and keeps full CUDA graphs on Model Runner V2 only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from analysis.plan.dialects.rows import read_object, speculating_rows, whole_number
from sim.serving.rounds.length_rules import LengthTable

_TABLE = "num_speculative_tokens_per_batch_size"


def write_vllm(
    table: LengthTable,
    *,
    model: str,
    method: str = "draft_model",
    max_num_seqs: int,
    data_parallel_size: int = 1,
    acceptance: Sequence[float] = (),
) -> str:
    """JSON for `vllm serve --speculative-config`. model: "" for methods without a draft model. method: in vLLM's words.

    A table of one length is written as that length alone. acceptance: (K,) marginal chances by position that the engine shall
    accept by, whatever the draft says: a server to measure times on, not answers (`rejection_sample_method` synthetic).
    Raises ValueError for what vLLM's table cannot say.

    >>> print(write_vllm(LengthTable.of((1, 8, 3), (9, None, 0)), model="org/draft", max_num_seqs=64), end="")
    {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 3,
     "num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 64, 0]]}
    """
    rows = speculating_rows(table, max_num_seqs)
    config: dict[str, Any] = {"method": method} | ({"model": model} if model else {})
    config["num_speculative_tokens"] = max(length for _, _, length in rows)
    if acceptance:
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": _rates(acceptance, config)}
    head = json.dumps(config)
    if len(rows) == 1:
        return head + "\n"
    if data_parallel_size > 1:
        raise ValueError(
            f"vLLM switches its table of lengths off with data parallel {data_parallel_size}; give each replica a "
            "server of its own, or choose one length."
        )
    return f"{head[:-1]},\n {json.dumps({_TABLE: rows})[1:]}\n"


def _rates(acceptance: Sequence[float], config: dict[str, Any]) -> list[float]:
    """To four digits. Raises ValueError where they are not one a position, or no survival."""
    rates = [round(rate, 4) for rate in acceptance]
    if len(rates) != config["num_speculative_tokens"]:
        raise ValueError(f"{len(rates)} rates of acceptance are given for K = {config['num_speculative_tokens']}.")
    if any(not 0 <= rate <= before for before, rate in pairwise([1.0, *rates])):
        raise ValueError(f"rates of acceptance must lie in [0, 1] and never rise with the position, but are {rates}.")
    return rates


def read_vllm(text: str) -> LengthTable:
    """The table that vLLM makes of such a value. Raises ValueError, in one line, for what it refuses."""
    config = read_object(text, "the speculative config of vLLM")
    longest = whole_number(config.get("num_speculative_tokens"), "num_speculative_tokens", minimum=1)
    if _TABLE not in config:
        return LengthTable.of((1, None, longest))
    ranges = config[_TABLE]
    if not isinstance(ranges, list) or not ranges:
        raise ValueError(f"{_TABLE} must be a list of [first, last, K], but got {ranges!r:.40}.")
    rows = [_range(entry, longest) for entry in ranges]
    if rows[0][0] != 1:
        raise ValueError(f"{_TABLE} must begin at a batch of 1, but begins at {rows[0][0]}.")
    for (_, last, _), (first, _, _) in pairwise(rows):
        if first <= last:
            raise ValueError(f"{_TABLE} must be sorted and without overlap, but {first} follows {last}.")
    firsts = [first for first, _, _ in rows]
    ends = [*(first - 1 for first in firsts[1:]), None]
    return LengthTable.merged([(first, end, length) for (first, _, length), end in zip(rows, ends, strict=True)])


def _range(entry: Any, longest: int) -> tuple[int, int, int]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"each entry of {_TABLE} must be [first, last, K], but got {entry!r:.40}.")
    first = whole_number(entry[0], f"the first batch size of {entry}", minimum=1)
    last = whole_number(entry[1], f"the last batch size of {entry}", minimum=first)
    return first, last, min(whole_number(entry[2], f"K of {entry}", minimum=0), longest)
