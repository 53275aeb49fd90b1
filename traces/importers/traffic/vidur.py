"""Traces of the Vidur simulator (arXiv:2405.05465; github.com/microsoft/vidur, data/processed_traces): CSV, seconds.

    arrived_at,num_prefill_tokens,num_decode_tokens
    0.052,3180,8

Some of them say lengths only, without arrived_at (and with further columns): these give `Lengths`, to which a generator adds
arrivals (`sim.serving.workload`).
"""

from __future__ import annotations

from array import array
from pathlib import Path

from traces.importers.traffic.base import CsvTraffic, check_tokens, column_names, csv_rows, lengths_of, whole_number
from traces.workload import Lengths

VIDUR = CsvTraffic(
    format="Vidur trace: CSV with arrived_at, num_prefill_tokens, num_decode_tokens",
    arrival="arrived_at",
    prompt="num_prefill_tokens",
    output="num_decode_tokens",
)


class VidurLengths:
    """The reader of those without arrivals."""

    format = "Vidur lengths: CSV with num_prefill_tokens, num_decode_tokens and no arrived_at"

    def recognises(self, first_line: bytes) -> bool:
        names = column_names(first_line)
        return {VIDUR.prompt, VIDUR.output} <= set(names) and VIDUR.arrival not in names

    def read(self, path: Path) -> Lengths:
        """Raises ForeignTraceError with file and line where a row is not a request."""
        prompts, outputs = array("q"), array("q")
        for number, (prompt, output) in csv_rows(path, (VIDUR.prompt, VIDUR.output)):
            prompt_tokens = whole_number(path, number, VIDUR.prompt, prompt)
            output_tokens = whole_number(path, number, VIDUR.output, output)
            check_tokens(path, number, prompt_tokens, output_tokens)
            prompts.append(prompt_tokens)
            outputs.append(output_tokens)
        return lengths_of(path, prompts, outputs, format=self.format)
