"""A client of ServeGen is windows in equal steps, and a damaged row is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.importers.base import ForeignTraceError
from traces.importers.traffic.catalog import read_windows
from traces.importers.traffic.servegen import GapFamily

ROWS = ("0,1.5,2.0,Gamma,0.25,3.0", "600,0,0,,0,0", "1200,0.5,3.0,Weibull,0.5,1.0")


def written(folder: Path, *rows: str) -> Path:
    path = folder / "client.csv"
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_windows_are_read_with_their_laws(tmp_path: Path) -> None:
    read = read_windows(written(tmp_path, *ROWS))
    assert (read.start_s.tolist(), read.window_s) == ([0.0, 600.0, 1200.0], 600.0)
    assert read.family == (GapFamily.GAMMA, None, GapFamily.WEIBULL)
    assert (read.arrivals_per_s.tolist(), read.gap_cv.tolist()) == ([1.5, 0.0, 0.5], [2.0, 0.0, 3.0])
    assert (read.shape.tolist(), read.scale_s.tolist()) == ([0.25, 0.0, 0.5], [3.0, 0.0, 1.0])
    assert read_windows(written(tmp_path, ROWS[0])).window_s == 600.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1200,fast,3.0,Weibull,0.5,1.0", "the rate is 'fast', but must be a number of at least 0"),
        ("1200,nan,3.0,Weibull,0.5,1.0", "the rate is 'nan'"),
        ("1200,-1,3.0,Weibull,0.5,1.0", "the rate is '-1'"),
        ("1200,inf,3.0,Weibull,0.5,1.0", "the rate is 'inf'"),
        ("1200,0.5,3.0,Pareto,0.5,1.0", "the family is 'Pareto', but must be Gamma, Weibull or nothing"),
        ("1200,0.5,3.0,Weibull,0,1.0", "the shape 0; correct the line"),
        ("1200,0.5,3.0,,0.5,1.0", "the family ''"),
        ("1200,0,0,Gamma,0.5,1.0", "the rate is 0"),
        ("1200,0.5,3.0,Weibull,0.5", "the row has 5 fields, but a window has 6"),
        ("1800,0.5,3.0,Weibull,0.5,1.0", "the window starts 1200 s after the one above it, but windows must follow"),
        ("600,0.5,3.0,Weibull,0.5,1.0", "the window starts 0 s after"),
        ("0,0.5,3.0,Weibull,0.5,1.0", "the window starts -600 s after"),
        ("nan,0.5,3.0,Weibull,0.5,1.0", "the start is 'nan'"),
    ],
)
def test_a_damaged_window_is_refused(row: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS[:2], row)
    with pytest.raises(ForeignTraceError, match=rf"client\.csv, line 3: .*{message}"):
        read_windows(path)
    with pytest.raises(ForeignTraceError, match=r"client\.csv, line 2: the window starts 0 s after"):
        read_windows(written(tmp_path, ROWS[0], ROWS[0]))


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignTraceError, match="is not a ServeGen client: CSV without column names"):
        read_windows(written(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens"))
    with pytest.raises(ForeignTraceError, match="is empty"):
        read_windows(written(tmp_path))
