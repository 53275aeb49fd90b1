"""BurstGPT (arXiv:2401.17644; github.com/HPMLL/BurstGPT): CSV of a campus's ChatGPT and GPT-4 requests.

    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
    5,ChatGPT,472,18,490,Conversation log

Timestamps are seconds. A request with 0 response tokens failed: it is left out, and the source line says how many were. Both
models and both log types are kept; files of later releases have further columns, which are left alone.
"""

from __future__ import annotations

from traces.importers.traffic.base import CsvTraffic

BURSTGPT = CsvTraffic(
    format="BurstGPT: CSV with Timestamp, Request tokens, Response tokens",
    arrival="Timestamp",
    prompt="Request tokens",
    output="Response tokens",
    skips_empty_outputs=True,
)
