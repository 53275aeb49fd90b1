"""Finished tasks of an exploration on disk, so that one that was killed goes on where it stopped.

They lie beside the results, in OUTPUT.partial, and go when the results are written. A folder belongs to one question:
the study, the traces, the calibration. Each task is one file, written under another name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.explore.work.evaluation import Evaluated
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from traces.files import whole_file, write_text
from traces.folder.run import read_json


class TaskStore:
    """Results of tasks by their workload and policies."""

    def __init__(self, output_dir: Path, question: str) -> None:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(
                f"{output_dir} already holds something, and results are never overwritten; name a new folder."
            )
        self.folder = output_dir.with_name(output_dir.name + ".partial")
        self.num_reused = 0
        note = self.folder / "question.json"
        digest = hashlib.sha256(question.encode()).hexdigest()
        if note.exists():
            if read_json(note).get("sha256") != digest:
                raise ValueError(
                    f"{self.folder} holds the unfinished results of another study, run or calibration; "
                    "finish that one, remove the folder, or name another --output-dir."
                )
            return
        write_text(note, json.dumps({"sha256": digest}) + "\n")

    def load(self, workload: int, policies: Sequence[Policy]) -> Evaluated | None:
        """What was stored for a task; None if nothing was, or half of it."""
        path = self._path(workload, policies)
        if not path.exists():
            return None
        try:
            with np.load(path) as arrays:
                evaluated = Evaluated(
                    policies=tuple(policies),
                    counts={name[2:]: arrays[name] for name in arrays.files if name.startswith("n:")},
                    seconds={name[2:]: arrays[name] for name in arrays.files if name.startswith("s:")},
                    peak_kv_tokens=arrays["peak"],
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # a damaged file is done again
            return None
        self.num_reused += 1
        return evaluated

    def save(self, workload: int, evaluated: Evaluated) -> None:
        """Store a finished task."""
        path = self._path(workload, evaluated.policies)
        columns: dict[str, Any] = {f"n:{name}": values for name, values in evaluated.counts.items()}
        columns |= {f"s:{name}": values for name, values in evaluated.seconds.items()}
        with whole_file(path) as place, place.open("wb") as file:
            np.savez(file, peak=evaluated.peak_kv_tokens, **columns)

    def discard(self) -> None:
        """Remove it all: the results are written."""
        shutil.rmtree(self.folder)

    def _path(self, workload: int, policies: Sequence[Policy]) -> Path:
        key = hashlib.sha256("\n".join([str(workload), *map(label_of, policies)]).encode()).hexdigest()[:24]
        return self.folder / f"{key}.npz"
