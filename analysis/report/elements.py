"""What a report is made of: sections of paragraphs, tables and charts, all of them plain values."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Table:
    """rows: texts, one a column. num_names: leading columns that hold names, set left; the others are numbers. note: a line
    that explains the columns. title: of a folded table, which opens."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int = 1
    note: str = ""
    title: str = ""
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Plotly figure as plain values (`data` and `layout`). title: the finding or the question. height: pixels.
    views: several figures of one kind by name, of which the reader picks one."""

    name: str
    title: str
    figure: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    height: int = 360
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def payload(self) -> Any:
        """For the page: one figure, or the figures by name."""
        return plain({"figure": self.figure, "views": [[name, figure] for name, figure in self.views.items()]})


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Something that a script of the page fills, and its data."""

    name: str
    kind: str
    data: Mapping[str, Any]
    note: str = ""

    def payload(self) -> Any:
        """For the page."""
        return plain(self.data)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A row of large numbers. entries: (number, what it is, detail)."""

    entries: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, as a list."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph. is_code: a command, to be copied. is_strong: an answer."""

    text: str
    is_code: bool = False
    is_strong: bool = False


Element: TypeAlias = Table | Chart | Panel | Figures | Facts | Text


@dataclass(frozen=True, kw_only=True)
class Section:
    """name: its anchor. lead: the finding, in a sentence."""

    name: str
    title: str
    lead: str = ""
    elements: Sequence[Element] = ()


def plain(value: Any) -> Any:
    """Values that strict JSON can hold: not-a-number and infinity become null, arrays become lists, numbers lose what no
    picture shows."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def in_chart(text: str) -> str:
    """A label for a chart, where Plotly reads a few tags."""
    return html.escape(text, quote=False)


def with_interval(value: float | None, interval: tuple[float, float] | None, digits: int = 2) -> str:
    """A number and its 95% interval as they stand in tables."""
    if value is None or not math.isfinite(value):
        return "-"
    if interval is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
