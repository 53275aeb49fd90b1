"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from traces.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises OSError where it cannot be written."""
    with whole_file(path) as place:
        figure.savefig(place, dpi=140, format="png")
