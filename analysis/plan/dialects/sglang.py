"""SGLang: the file of `--speculative-adaptive-config`, whose keys are the smallest batch sizes of each entry.

Rules of the engine (sglang/srt/speculative/adaptive_spec_params.py and adaptive_step_router.py, copies of 2026): keys that are
whole numbers, as text, hold `candidate_steps`; a batch below the first key takes the first entry; other keys are settings of
all entries. With one candidate an entry is a fixed length. Settings are all written, since their defaults move. The engine
rounds a batch up to its next captured CUDA graph before it looks. Adaptive steps need EAGLE or EAGLE3,
`--speculative-eagle-topk 1` and no attention data parallel; otherwise SGLang runs without them.
"""

from __future__ import annotations

import json
from typing import Any

from analysis.plan.dialects.rows import batch_key, read_object, speculating_rows, whole_number
from sim.serving.rounds.length_rules import LengthTable

_SETTINGS = {"strategy": "ema", "ema_alpha": 0.2, "warmup_batches": 10, "update_interval": 5}
_ENTRY = {"up_hysteresis": 0.0, "down_hysteresis": 0.0, "ceiling_coeff": 0}


def write_sglang(table: LengthTable, *, max_num_seqs: int) -> str:
    """JSON of the adaptive config: one candidate an entry. Raises ValueError for what no engine's table can say.

    >>> text = write_sglang(LengthTable.of((1, 8, 3), (9, None, 0)), max_num_seqs=64)
    >>> [(key, value["candidate_steps"]) for key, value in json.loads(text).items() if key.isdigit()]
    [('1', [3]), ('9', [0])]
    """
    config: dict[str, Any] = dict(_SETTINGS)
    for first, _, length in speculating_rows(table, max_num_seqs):
        config[str(first)] = {"candidate_steps": [length], **_ENTRY}
    return json.dumps(config, indent=1) + "\n"


def read_sglang(text: str) -> LengthTable:
    """The table of such a file. Raises ValueError, in one line, for what SGLang refuses, and where an entry has several
    candidates: the engine then follows what was accepted, and `MovingAverageRule` of the simulator is its model."""
    what = "the adaptive config of SGLang"
    config = read_object(text, what)
    firsts: dict[int, int] = {}
    for key, entry in config.items():
        if not key.isdigit():
            continue
        first = max(batch_key(key, what, minimum=0), 1)
        if first in firsts:
            raise ValueError(f"{what} has two entries for batches from {first}.")
        firsts[first] = _length(key, entry)
    if not firsts:
        raise ValueError(f'{what} needs an entry by batch size, such as "1": {{"candidate_steps": [3]}}.')
    starts = sorted(firsts)
    ends = [*(start - 1 for start in starts[1:]), None]
    return LengthTable.merged(
        [(start if index else 1, ends[index], firsts[start]) for index, start in enumerate(starts)]
    )


def _length(key: str, entry: Any) -> int:
    steps = entry.get("candidate_steps") if isinstance(entry, dict) else None
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"batch size {key}: candidate_steps must be a list of whole numbers, but got {steps!r:.40}.")
    lengths = {whole_number(step, f"batch size {key}: a candidate step", minimum=0) for step in steps}
    if len(lengths) > 1:
        raise ValueError(
            f"batch size {key} has several candidate steps, {sorted(lengths)}: what follows acceptance is not a table."
        )
    return lengths.pop()
