"""The text format of Prometheus, as far as engines use it: one sample a line, summed over labels that nobody asks for.

    # TYPE vllm:spec_decode_num_drafts counter
    vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 1024.0

A line may end with a time stamp, which is left alone; label values may hold escaped quotes. Counters count since the server
started, so that a stretch of time is the difference of two scrapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from traces.importers.base import ForeignTraceError, numbered_lines

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_VALUES = {"+Inf": math.inf, "-Inf": -math.inf}

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    """Samples of one page. values: by name and labels, which are sorted. is_difference: of two pages."""

    path: Path
    values: Mapping[tuple[str, Labels], float]
    is_difference: bool = False

    def total(self, name: str) -> float | None:
        """Summed over all labels; None where it is not there."""
        found = [value for (sample, _), value in self.values.items() if sample == name]
        return sum(found) if found else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Summed over all other labels."""
        sums: dict[str, float] = {}
        for (sample, labels), value in self.values.items():
            key = dict(labels).get(label)
            if sample == name and key is not None:
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def since(self, before: Scrape) -> Scrape:
        """What was counted between two pages; gauges and what is not cumulative stay as they are.

        Raises ForeignTraceError where a counter fell: the server was started anew, or the pages are in the wrong order.
        """
        values = {}
        for (name, labels), value in self.values.items():
            if not name.endswith(("_total", "_bucket", "_sum", "_count")):
                values[name, labels] = value
                continue
            base = before.values.get((name, labels), 0.0)
            if value < base:
                raise ForeignTraceError(
                    f"{self.path}: {name} fell from {base:g} in {before.path} to {value:g}: the server was started anew in "
                    "between, or the files are in the wrong order; give the earlier one first."
                )
            values[name, labels] = value - base
        started = "process_start_time_seconds"
        if before.total(started) is not None and before.total(started) != self.total(started):
            raise ForeignTraceError(f"{self.path}: the server was started anew since {before.path}; scrape both again.")
        return Scrape(self.path, values, is_difference=True)

    def mean(self, histogram: str) -> float | None:
        """Sum over count; None where nothing was counted."""
        total, count = self.total(f"{histogram}_sum"), self.total(f"{histogram}_count")
        return total / count if total is not None and count else None

    def quantile(self, histogram: str, share: float) -> float | None:
        """By linear interpolation within the bucket that holds it, whatever the buckets are; infinite above the last one.

        None where nothing was counted.
        """
        buckets = sorted((_bound(le), count) for le, count in self.by_label(f"{histogram}_bucket", "le").items())
        if not buckets or not buckets[-1][1]:
            return None
        wanted, low, below = share * buckets[-1][1], 0.0, 0.0
        for high, count in buckets:
            if count >= wanted and count > below:
                return high if math.isinf(high) else low + (high - low) * (wanted - below) / (count - below)
            low, below = high, count
        return math.inf


def _bound(le: str) -> float:
    return _VALUES[le] if le in _VALUES else float(le)


def is_prometheus(first_line: str) -> bool:
    """Whether a page may begin so."""
    return first_line.startswith(("# HELP ", "# TYPE ")) or bool(_SAMPLE.match(first_line) and ":" in first_line)


def read_scrape(path: Path) -> Scrape:
    """A page. Raises ForeignTraceError with file and line where a line is no sample, as at the end of one that was cut."""
    values: dict[tuple[str, Labels], float] = {}
    for where, raw in numbered_lines(path):
        line = raw.decode("utf-8", "replace")
        if line.startswith("#"):
            continue
        found = _SAMPLE.match(line)
        if found is None:
            raise ForeignTraceError(f"{where} is not a sample of Prometheus text: {line!r:.60}; was the page cut?")
        key = found[1], _labels(where, found[2] or "")
        if key in values:
            raise ForeignTraceError(f"{where}: {found[1]} is there twice; give each scrape as a file of its own.")
        values[key] = _value(where, found[3])
        if key[0].endswith("_bucket"):
            _value(where, dict(key[1]).get("le", "none"))
    return Scrape(path, values)


def _labels(where: str, text: str) -> Labels:
    labels, place = [], 0
    while place < len(text):
        found = _LABEL.match(text, place)
        if found is None:
            raise ForeignTraceError(f"{where}: these are no labels: {text[place:]!r:.60}.")
        labels.append((found[1], found[2]))
        place = found.end()
    return tuple(sorted(labels))


def _value(where: str, text: str) -> float:
    try:
        return _VALUES[text] if text in _VALUES else float(text)
    except ValueError:
        raise ForeignTraceError(f"{where}: a sample's value must be a number, but got {text!r:.40}.") from None
