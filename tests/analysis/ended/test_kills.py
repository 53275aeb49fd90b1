"""Commands that are killed again and again, and begun again each time, end as if nothing had happened.

As many kills of each as one likes: SPECBRANCH_KILLS=70 pytest -m slow tests/analysis/ended/test_kills.py
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.analysis.ended.processes import LONGEST_S, check_nothing_is_left, of_session, start, wait_until
from tests.analysis.made_up_run import write_run
from traces.folder.audit import audit
from traces.folder.run import Run, read_run
from traces.shared_memory import SHARED, make_meeting_place

NUM_KILLS = int(os.environ.get("SPECBRANCH_KILLS", "3"))
RECORD = ("record", "--num-prompts", "40", "--max-new-tokens", "48", "--ignore-eos", "--resume", "--output-dir")
TRAFFIC = ("--request-rate", "8", "--prompt-tokens", "200", "--output-tokens", "100", "--acceptance", "0.75,0.55,0.42")
EXPLORE = ("explore", "--run", "run", "--workers", "2", "--output-dir")
PLAN = ("plan", *TRAFFIC, "--num-prompts", "300", "--workers", "2", "--output-dir")
RESULTS = {EXPLORE: "results.parquet", PLAN: "methods.parquet"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
COLUMNS = ["prompt_id", "temperature", "policy", "repeat", "tokens_sha256"]
MAX_WAIT_S = 12.0


@pytest.mark.slow
def test_nothing_is_lost_however_often_a_recording_dies(tmp_path: Path) -> None:
    rng = random.Random(NUM_KILLS)
    whole = _recorded(tmp_path, "whole")
    done, number, kept = 0, 0, 0
    while done < NUM_KILLS:
        name = f"run{number}"
        is_killed = _killed(tmp_path, (*RECORD, name), rng)
        if not (tmp_path / name).exists():  # it came before anything was recorded
            assert not kept, "a run that had been begun is gone"
            continue
        done += is_killed
        found = audit(tmp_path / name)
        assert found.problems == ()
        assert (found.num_requests or 0) >= kept, "a request that had been recorded is gone"
        kept = found.num_requests or 0
        if done >= NUM_KILLS and not found.is_complete:
            _recorded(tmp_path, name)
        if done >= NUM_KILLS or found.is_complete:
            assert _rows(read_run(tmp_path / name)) == _rows(whole)
            number, kept = number + 1, 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [EXPLORE, PLAN], ids=["explore", "plan"])
def test_what_several_processes_work_out_is_whole_or_not_there(tmp_path: Path, command: tuple[str, ...]) -> None:
    rng = random.Random(NUM_KILLS)
    write_run(tmp_path / "run", num_requests=40)
    whole = _worked_out(tmp_path, command, "whole")
    done, stored = 0, set[Path]()
    while done < NUM_KILLS:
        done += _killed(tmp_path, (*command, "out"), rng)
        kept = set((tmp_path / "out.partial").glob("*.npz"))
        for path in kept:
            with np.load(path) as arrays:  # half of one could not be read
                assert all(len(arrays[name].shape) for name in arrays.files)
        if (tmp_path / "out" / "summary.json").exists():
            json.loads((tmp_path / "out" / "summary.json").read_text())
            pd.testing.assert_frame_equal(_results(tmp_path / "out", command), whole)
            stored = set()
        else:
            assert stored <= kept, "what was worked out is gone"
            stored = kept
        shutil.rmtree(tmp_path / "out", ignore_errors=True)  # results are never overwritten
    pd.testing.assert_frame_equal(_worked_out(tmp_path, command, "out"), whole)


def _killed(folder: Path, command: tuple[str, ...], rng: random.Random) -> bool:
    """Whether a signal came before the command's end; nothing of it is left then, or the next one clears it."""
    before = set(SHARED.glob("sem.*"))  # of others, who may have had the same number
    process = start(folder, *command)
    wait_until(lambda: len(of_session(process.pid)) > 1 or process.poll() is not None, process, may_end=True)
    is_killed, is_all, number = False, rng.random() < 0.5, rng.choice(SIGNALS)
    places: set[Path] = set()
    try:
        process.wait(rng.uniform(0, MAX_WAIT_S))
    except subprocess.TimeoutExpired:
        is_killed, places = True, _places(process.pid)
        (os.killpg if is_all else os.kill)(process.pid, number)
    error = process.communicate(timeout=LONGEST_S)[1]
    assert "Traceback" not in error
    check_nothing_is_left(process.pid)
    assert process.returncode in ((0, -number, 128 + number) if is_killed else (0,)), error
    if is_killed and number == signal.SIGKILL:  # perhaps nobody was left who could clear up
        for place in filter(Path.exists, places):
            os.utime(place, (0, 0))  # a young one might just be being made
        place, lock = make_meeting_place()
        shutil.rmtree(place)
        lock.close()
    assert not list(filter(Path.exists, places)), "a folder stays in shared memory"
    assert not set(SHARED.glob(f"sem.loky-{process.pid}-*")) - before, "semaphores stay in shared memory"
    return is_killed


def _places(leader: int) -> set[Path]:
    """The folders in shared memory that the processes of a session use."""
    found = {path for path in SHARED.glob("specbranch-*") if (path / "maker").read_bytes() == str(leader).encode()}
    for process in of_session(leader):
        try:
            found |= set(map(Path, re.findall(rf"{SHARED}/specbranch-\w+", " ".join(process.cmdline()))))
        except psutil.Error:
            continue
    return found


def _recorded(folder: Path, name: str) -> Run:
    _end_well(folder, *RECORD, name)
    assert audit(folder / name).problems == ()
    return read_run(folder / name)


def _worked_out(folder: Path, command: tuple[str, ...], name: str) -> pd.DataFrame:
    _end_well(folder, *command, name)
    return _results(folder / name, command)


def _results(folder: Path, command: tuple[str, ...]) -> pd.DataFrame:
    return pd.read_parquet(folder / RESULTS[command])


def _end_well(folder: Path, *arguments: str) -> None:
    process = start(folder, *arguments)
    error = process.communicate(timeout=4 * LONGEST_S)[1]
    assert process.returncode == 0, error


def _rows(run: Run) -> list[tuple[object, ...]]:
    return sorted(run.requests[COLUMNS].itertuples(index=False, name=None))
