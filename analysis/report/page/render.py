"""From sections to one HTML file that needs no network: style, scripts and data stand in it."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from analysis.report.elements import Chart, Element, Facts, Figures, Panel, Section, Table

HERE = "analysis.report.page"


@dataclass(frozen=True, kw_only=True)
class Page:
    """title: of the window. warnings: what a reader must know before anything else, in sentences."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The whole file as text. Everything that comes from runs is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_text("page.html.jinja"))
    payloads = {
        element.name: element.payload()
        for section in page.sections
        for element in section.elements
        if isinstance(element, Chart | Panel)
    }
    return template.render(
        page=page,
        kind_of=_kind_of,
        payloads=payloads,
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
        # Within a script element only an end tag could end it.
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if payloads else "",
        version=importlib.metadata.version("specbranch"),
        today=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _text(name: str) -> str:
    return files(HERE).joinpath(name).read_text(encoding="utf-8")


_KINDS: tuple[tuple[type[Any], str], ...] = (
    (Table, "table"),
    (Chart, "chart"),
    (Panel, "panel"),
    (Figures, "figures"),
    (Facts, "facts"),
)


def _kind_of(element: Element) -> str:
    return next((name for kind, name in _KINDS if isinstance(element, kind)), "text")
