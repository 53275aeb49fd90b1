"""Clients of ServeGen (arXiv:2505.09999; github.com/alibaba/ServeGen, data/*/*/chunk-*-trace.csv): CSV without column names.

    0,1.3316666666666668,8.598383725990791,Weibull,0.3753486140101707,0.3967677807107179
    600,0,0,,0,0

A row is a window of 600 s of one client: its start (s), the rate (1/s), the coefficient of variation of the gaps between
requests, the family of their law (Gamma, Weibull, or empty for a window without requests), its shape and its scale (s). It
describes arrivals and holds no requests: `sim.serving.workload` draws them, given lengths.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.importers.base import ForeignTraceError
from traces.importers.traffic.base import row_error, rows_of, short_name
from traces.workload import Floats

DEFAULT_WINDOW_S = 600.0  # of a file with a single window


class GapFamily(enum.StrEnum):
    """The law of the gaps between requests in a window."""

    GAMMA = "Gamma"
    WEIBULL = "Weibull"


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrivalWindows:
    """How one client's requests arrive, window by window.

    start_s: (n,) in equal steps of window_s. arrivals_per_s: (n,) at least 0. gap_cv: (n,) the measured coefficient of
    variation. family: n laws, None where no request arrives. shape, scale_s: (n,) above 0 where there is a law. The scale is
    the fit's: in bursty windows it misses the rate by a factor of two and more, so generators take the mean gap from the rate.
    """

    start_s: Floats
    window_s: float
    arrivals_per_s: Floats
    gap_cv: Floats
    family: tuple[GapFamily | None, ...]
    shape: Floats
    scale_s: Floats
    source: str = ""


class ServeGen:
    """The reader of this format."""

    format = "ServeGen client: CSV without column names, start, rate, CV, Gamma or Weibull or nothing, shape, scale"

    def recognises(self, first_line: bytes) -> bool:
        fields = first_line.decode("utf-8", "replace").split(",")
        return len(fields) == 6 and fields[3].strip() in ("", *GapFamily) and _is_number(fields[0])

    def read(self, path: Path) -> ArrivalWindows:
        """Raises ForeignTraceError with file and line where a row is not a window, or windows leave gaps."""
        windows: list[tuple[float, ...]] = []
        families: list[GapFamily | None] = []
        for number, line in rows_of(path):
            window, family = _window(path, number, line)
            windows.append(window)
            families.append(family)
            if len(windows) > 1:
                step = window[0] - windows[-2][0]
                expected = windows[1][0] - windows[0][0]
                if step <= 0 or abs(step - expected) > 1e-6 * expected:
                    raise row_error(
                        path,
                        number,
                        f"the window starts {step:g} s after the one above it, but windows must follow each other in equal "
                        "steps; sort the file by its first column, and fill what is missing.",
                    )
        if not windows:
            raise ForeignTraceError(f"{path} holds no window; give a file with at least one.")
        start_s, rate, cv, shape, scale_s = np.array(windows).T
        return ArrivalWindows(
            start_s=start_s,
            window_s=float(start_s[1] - start_s[0]) if len(start_s) > 1 else DEFAULT_WINDOW_S,
            arrivals_per_s=rate,
            gap_cv=cv,
            family=tuple(families),
            shape=shape,
            scale_s=scale_s,
            source=f"{path.name} ({short_name(self.format)})",
        )


def _window(path: Path, number: int, line: bytes) -> tuple[tuple[float, ...], GapFamily | None]:
    """(start, rate, CV, shape, scale) and the family. Raises ForeignTraceError."""
    fields = [field.strip() for field in line.decode("utf-8", "replace").split(",")]
    if len(fields) != 6:
        raise row_error(path, number, f"the row has {len(fields)} fields, but a window has 6; correct or remove it.")
    name = fields.pop(3)
    if name not in ("", *GapFamily):
        raise row_error(path, number, f"the family is {name!r:.60}, but must be Gamma, Weibull or nothing.")
    family = GapFamily(name) if name else None
    for place, field in enumerate(fields):
        if not _is_number(field) or not 0 <= float(field) < np.inf:
            column = ("start", "rate", "coefficient of variation", "shape", "scale")[place]
            raise row_error(
                path, number, f"the {column} is {field!r:.60}, but must be a number of at least 0; correct it."
            )
    window = tuple(map(float, fields))
    if (family is not None) != (window[1] > 0) or (family is not None and window[3] <= 0):
        raise row_error(
            path,
            number,
            "a window with requests has a rate, a family and a shape above 0, and one without has none of them, but the "
            f"rate is {window[1]:g}, the family {name!r} and the shape {window[3]:g}; correct the line.",
        )
    return window, family


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
