"""TensorRT-LLM: `speculative_config` with `draft_len_schedule`, whose keys are the largest batch sizes of each length.

Rules of the engine (tensorrt_llm/llmapi/llm_args.py, 1.4 release candidates): {4: 4, 8: 2} is K = 4 for 1 to 4 requests, 2 for
5 to 8, and 0 above; the smallest key's length must be `max_draft_len`, and no length may exceed it; `max_concurrency` must be
absent beside a schedule. Releases up to 1.3 read the keys as smallest batch sizes: this file is not for them. The acceptance
threshold of the engine, which switches speculation off for good, is left off.
"""

from __future__ import annotations

import json
from typing import Any

from analysis.plan.dialects.rows import batch_key, read_object, speculating_rows, whole_number
from sim.serving.rounds.length_rules import LengthTable

DECODING_TYPES = {
    "draft_model": "Draft_Target", "eagle": "Eagle", "eagle3": "Eagle3", "mtp": "MTP", "ngram": "NGram",
}  # fmt: skip


def write_tensorrt_llm(table: LengthTable, *, model: str, method: str = "draft_model", max_num_seqs: int) -> str:
    """JSON, which is YAML too, for `speculative_config` of the engine's options. method: in vLLM's words.

    Raises ValueError for a method without a name there, and for tables that the engine refuses.

    >>> print(write_tensorrt_llm(LengthTable.of((1, 8, 3), (9, None, 0)), model="org/draft", max_num_seqs=64), end="")
    {"decoding_type": "Draft_Target", "speculative_model": "org/draft", "max_draft_len": 3, "draft_len_schedule": {"8": 3}}
    """
    if method not in DECODING_TYPES:
        raise ValueError(f"TensorRT-LLM has no method {method!r} that we know; known are {', '.join(DECODING_TYPES)}.")
    rows = speculating_rows(table, max_num_seqs)
    longest = max(length for _, _, length in rows)
    if rows[0][2] != longest:
        raise ValueError(
            f"TensorRT-LLM wants the longest draft at the smallest batches, but this table has {rows[0][2]} there "
            f"and {longest} later."
        )
    config: dict[str, Any] = {"decoding_type": DECODING_TYPES[method]} | ({"speculative_model": model} if model else {})
    config["max_draft_len"] = longest
    if not rows[-1][2]:
        del rows[-1]  # above the last key is 0
    config["draft_len_schedule"] = {str(last): length for _, last, length in rows}
    return json.dumps(config) + "\n"


def read_tensorrt_llm(text: str) -> LengthTable:
    """The table that TensorRT-LLM makes of it. Raises ValueError, in one line, for what it refuses."""
    what = "draft_len_schedule"
    config = read_object(text, "the speculative config of TensorRT-LLM")
    longest = whole_number(config.get("max_draft_len"), "max_draft_len", minimum=0)
    schedule = config.get(what)
    if schedule is None:
        return _up_to(longest, config.get("max_concurrency"))
    if config.get("max_concurrency") is not None:
        raise ValueError(f"max_concurrency and {what} exclude each other.")
    if not isinstance(schedule, dict) or not schedule:
        raise ValueError(f"{what} must hold lengths by batch size, but got {schedule!r:.40}.")
    lengths: dict[int, int] = {}
    for key, length in schedule.items():
        last = batch_key(key, what, minimum=1)
        if last in lengths:
            raise ValueError(f"{what} has two lengths for batches up to {last}.")
        lengths[last] = whole_number(length, f"the length at {key} of {what}", minimum=0)
    lasts = sorted(lengths)
    if lengths[lasts[0]] != longest or max(lengths.values()) > longest:
        raise ValueError(f"{what} must begin with max_draft_len, {longest}, and never exceed it, but has {lengths}.")
    firsts = [1, *(last + 1 for last in lasts)]
    rows: list[tuple[int, int | None, int]] = [
        (first, last, lengths[last]) for first, last in zip(firsts, lasts, strict=False)
    ]
    return LengthTable.merged([*rows, (firsts[-1], None, 0)])


def _up_to(length: int, max_concurrency: Any) -> LengthTable:
    """One length, up to the engine's own bound where it has one."""
    if max_concurrency is None:
        return LengthTable.of((1, None, length))
    last = whole_number(max_concurrency, "max_concurrency", minimum=1)
    return LengthTable.merged([(1, last, length), (last + 1, None, 0)])
