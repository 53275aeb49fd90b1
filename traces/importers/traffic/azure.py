"""Azure's production traces of 2023 and 2024 (github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace): CSV.

    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:17:03.9799600,4808,10

Times are UTC, read to the microsecond.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from traces.importers.traffic.base import CsvTraffic

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(text: str) -> int:
    """Microseconds since 1970; further decimals are cut. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


AZURE = CsvTraffic(
    format="Azure trace: CSV with TIMESTAMP, ContextTokens, GeneratedTokens",
    arrival="TIMESTAMP",
    prompt="ContextTokens",
    output="GeneratedTokens",
    ticks=_microseconds,
    ticks_per_s=1_000_000,
)
