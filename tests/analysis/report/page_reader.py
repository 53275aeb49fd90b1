"""What a page says, read as a browser would."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "img", "input", "br", "hr"}


class PageReader(HTMLParser):
    """tags: (name, attributes) in order. text: what is visible. rows: of tables, as lists of cells."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.header = self.text = ""
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "script":
            self.scripts.append("")
        elif tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" in self._open:
            self.styles[-1] += data
        else:
            self.text += data
            if "header" in self._open:
                self.header += data
            if "td" in self._open or "th" in self._open:
                self.rows[-1][-1] += data

    @property
    def payloads(self) -> dict[str, Any]:
        """The data of charts and panels."""
        found: dict[str, Any] = json.loads(next(text for text in self.scripts if text.startswith("{")))
        return found


def read_page(path: Path) -> PageReader:
    """A report's file."""
    reader = PageReader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader._open, f"never closed: {reader._open}"
    return reader
