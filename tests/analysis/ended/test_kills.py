"""A recording that is killed again and again, and resumed each time, ends as if nothing had happened.

As many kills as one likes: SPECBRANCH_KILLS=200 pytest -m slow tests/analysis/ended/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.analysis.ended.processes import LONGEST_S, check_nothing_is_left, of_session, start, wait_until
from traces.folder.audit import audit
from traces.folder.run import Run, read_run

NUM_KILLS = int(os.environ.get("SPECBRANCH_KILLS", "6"))
ARGUMENTS = ("record", "--num-prompts", "40", "--max-new-tokens", "48", "--ignore-eos", "--resume", "--output-dir")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
COLUMNS = ["prompt_id", "temperature", "policy", "repeat", "tokens_sha256"]


@pytest.mark.slow
def test_nothing_is_lost_however_often_a_recording_dies(tmp_path: Path) -> None:
    rng = random.Random(NUM_KILLS)
    whole = _finish(tmp_path, "whole")
    done, number = 0, 0
    while done < NUM_KILLS:
        name, number = f"run{number}", number + 1
        kept = 0
        while True:
            process = start(tmp_path, *ARGUMENTS, name)
            wait_until(lambda folder=tmp_path / name: (folder / "meta.json").is_file(), process)
            wait_until(lambda started=process: len(of_session(started.pid)) > 1 or started.poll() is not None, process)
            try:
                process.wait(rng.uniform(0, 12))
            except Exception:
                done += 1
                to_group = rng.random() < 0.5
                (os.killpg if to_group else os.kill)(process.pid, rng.choice(SIGNALS))
            process.communicate(timeout=LONGEST_S)
            check_nothing_is_left(process.pid)
            found = audit(tmp_path / name)
            assert found.problems == ()
            assert (found.num_requests or 0) >= kept, "a request that had been recorded is gone"
            kept = found.num_requests or 0
            if found.is_complete:
                break
            if done >= NUM_KILLS:
                _finish(tmp_path, name)
                break
        assert _rows(read_run(tmp_path / name)) == _rows(whole)


def _finish(folder: Path, name: str) -> Run:
    process = start(folder, *ARGUMENTS, name)
    error = process.communicate(timeout=4 * LONGEST_S)[1]
    assert process.returncode == 0, error
    assert audit(folder / name).problems == ()
    return read_run(folder / name)


def _rows(run: Run) -> list[tuple[object, ...]]:
    return sorted(run.requests[COLUMNS].itertuples(index=False, name=None))
