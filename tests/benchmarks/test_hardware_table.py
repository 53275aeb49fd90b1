"""The hardware table of docs/measured.md is the one that the committed results give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_shows_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("hardware_table", HERE / "hardware_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (HERE.parents[1] / "docs" / "measured.md").read_text(encoding="utf-8")
    for path in sorted((HERE / "results").glob("*.json")):
        table = module.render(json.loads(path.read_text(encoding="utf-8")))
        assert table.strip() in page, f"print it again: python tests/benchmarks/hardware_table.py {path}"
