"""What was read from engines as a folder: benches.csv for fits and checks, acceptance.json for plans, import.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from traces.files import write_text
from traces.importers.base import ForeignTraceError
from traces.importers.engines.records import EngineFile, pooled
from traces.importers.server_bench import write_server_bench


def write_bench_folder(files: Sequence[EngineFile], folder: Path, *, kv_tokens: int | None = None) -> list[str]:
    """Into a folder that exists; returns the names of the files written. kv_tokens: for rows that do not say theirs.

    benches.csv only where there are rows, acceptance.json only where something was drafted. Raises ForeignTraceError where
    the files hold neither.
    """
    memory = {} if kv_tokens is None else {"kv_tokens": str(kv_tokens)}
    rows = [memory | dict(row) for file in files for row in file.rows]
    record = pooled([record for file in files for record in file.acceptance])
    if not rows and record is None:
        raise ForeignTraceError(
            f"{files[0].path} holds neither a benchmark nor an acceptance; give a benchmark's result or a metrics page "
            "as well."
        )
    written = []
    if rows:
        write_server_bench(folder / "benches.csv", rows)
        written.append("benches.csv")
    if record is not None:
        record.write(folder / "acceptance.json")
        written.append("acceptance.json")
    told = [
        {
            "file": str(file.path),
            "format": file.format,
            "num_benchmarks": len(file.rows),
            "kv_tokens": file.kv_tokens,
            "understood": file.understood,
            "unknown": file.unknown,
        }
        for file in files
    ]
    write_text(folder / "import.json", json.dumps({"files": told}, indent=2) + "\n")
    return [*written, "import.json"]
