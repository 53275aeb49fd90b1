"""How a file of each format of traffic is written, for the tests of its readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def json_line(**fields: object) -> str:
    return json.dumps(fields)


def aiperf_line(start_ns: object, prompt: object, output: object, *, error: object = None, **metadata: object) -> str:
    return json_line(
        metadata={"x_request_id": "a", "request_start_ns": start_ns, "benchmark_phase": "profiling"} | metadata,
        metrics={
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
            "inter_chunk_latency": {"value": [4.9, 5.3], "unit": "ms"},
        },
        error=error,
    )


def measured_line(arrival: object, prompt: object, output: object, *, after: float = 0.25) -> str:
    queued = after + (arrival if isinstance(arrival, float | int) else 0)
    return json_line(
        request_id="bench-0",
        input_toks=prompt,
        output_toks=output,
        arrival_time=arrival,
        queued_ts=queued,
        scheduled_ts=queued + 1,
        first_token_ts=queued + 2,
        last_token_ts=queued + 4,
    )


@dataclass(frozen=True)
class Format:
    """How a file of one format is written. line: of ticks, prompt and output tokens. unit_s: of a tick."""

    line: Callable[[object, object, object], str]
    header: str | None = None
    unit_s: float = 1.0
    always_sorts: bool = False
    skips_empty: bool = False

    def text(self, *rows: tuple[object, object, object]) -> str:
        return "".join(
            f"{line}\n" for line in (*([self.header] if self.header else []), *(self.line(*row) for row in rows))
        )

    @property
    def first(self) -> int:
        """The line of the first request."""
        return 2 if self.header else 1


FORMATS = {
    "azure": Format(
        lambda ticks, prompt, output: (
            f"2023-11-16 18:17:{ticks:010.7f},{prompt},{output}"
            if isinstance(ticks, int | float) and 0 <= ticks < 60
            else f"{ticks},{prompt},{output}"
        ),
        header="TIMESTAMP,ContextTokens,GeneratedTokens",
    ),
    "burstgpt": Format(
        lambda ticks, prompt, output: f"{ticks},ChatGPT,{prompt},{output},0,Conversation log",
        header="Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        skips_empty=True,
    ),
    "vidur": Format(
        lambda ticks, prompt, output: f"{ticks},{prompt},{output}",
        header="arrived_at,num_prefill_tokens,num_decode_tokens",
    ),
    "splitwise": Format(
        lambda ticks, prompt, output: f"0,2,0,{ticks},1,{prompt},{output}",
        header="request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
    ),
    "timed": Format(
        lambda ticks, prompt, output: json_line(timestamp=ticks, input_length=prompt, output_length=output)
    ),
    "mooncake": Format(
        lambda ticks, prompt, output: json_line(
            timestamp=ticks,
            input_length=prompt,
            output_length=output,
            hash_ids=list(range(-(-prompt // 512))) if isinstance(prompt, int) and 0 < prompt < 10**6 else [],
        ),
        unit_s=0.001,
    ),
    "dsdsim": Format(
        lambda ticks, prompt, output: json_line(
            request_id="g", arrival_ms=ticks, prompt_tokens=prompt, target_tokens=output, device_tier="default"
        ),
        unit_s=0.001,
    ),
    "aiperf": Format(aiperf_line, unit_s=1e-9, always_sorts=True),
    "measured": Format(measured_line),
}
ROWS = ((3, 700, 10), (4, 20, 1), (4, 1000, 30), (9, 5, 40))


def written(folder: Path, text: str, name: str = "traffic") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
