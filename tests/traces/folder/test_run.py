"""A run folder gives back what was written, survives being cut short, and never overwrites."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.folder.run import RunError, read_run
from traces.folder.writer import RunWriter
from traces.schema import (
    UNKNOWN_SIGNAL,
    FinishReason,
    Op,
    RequestRecord,
    RequestTrace,
    RollbackCase,
    Round,
    RoundTimes,
    Signal,
)

probabilities = st.floats(0, 1, width=64)
signals = st.builds(
    Signal, probabilities, st.floats(0, allow_infinity=False, width=64), st.floats(0, allow_nan=False, width=64)
)
small = st.integers(0, 1000)
finite = st.floats(-1e12, 1e12, width=64)  # measurements are
times = st.builds(RoundTimes, finite, finite, finite, finite)


@st.composite
def request_traces(draw: st.DrawFn) -> RequestTrace:
    num = draw(st.integers(1, 6))
    ranks = draw(st.lists(st.integers(0, 60), min_size=num, max_size=num))
    depth = draw(st.integers(0, 3))
    tails = {
        position: tuple(draw(st.lists(signals, min_size=depth, max_size=depth)))
        for position in draw(st.sets(st.integers(0, num)))
    }
    on_path = draw(st.lists(signals, min_size=num, max_size=num)) if draw(st.booleans()) else []
    classes = st.lists(st.tuples(probabilities, probabilities, probabilities), min_size=num + 1, max_size=num + 1)
    return RequestTrace(
        request_id=0,
        prompt_id="prompt é\n",
        num_prompt_tokens=draw(small),
        max_new_tokens=draw(small),
        temperature=draw(st.floats(0, 2)),
        finish_reason=draw(st.sampled_from(FinishReason)),
        ranks=tuple(ranks),
        signals=tuple(on_path),
        tails=tails,
        tail_depth=depth,
        class_probs=tuple(draw(classes)) if draw(st.booleans()) else (),
    )


@st.composite
def any_rounds(draw: st.DrawFn) -> Round:
    values = {name: draw(small) for name in Round._fields}
    values |= {"request_id": draw(st.integers(0, 2)), "next_rank": draw(st.integers(-1, 9))}
    return Round(**values)._replace(  # type: ignore[arg-type]  # the others follow
        fanout=tuple(draw(st.lists(st.integers(0, 9), max_size=4))),
        rollback_case=draw(st.sampled_from(RollbackCase)),
        predicted_class=draw(st.integers(-1, 2)),
        is_hit=draw(st.booleans()),
        is_finished=draw(st.booleans()),
    )


def record_of(trace: RequestTrace) -> RequestRecord:
    return RequestRecord(
        request_id=trace.request_id,
        prompt_id=trace.prompt_id,
        policy="pearl(4)",
        repeat=0,
        temperature=trace.temperature,
        top_k=0,
        top_p=1.0,
        seed=0,
        noise_key=2**64 - 1,
        arrival_s=0.0,
        first_token_s=0.5,
        finish_s=1.0,
        num_prompt_tokens=trace.num_prompt_tokens,
        num_output_tokens=trace.num_tokens,
        max_new_tokens=trace.max_new_tokens,
        finish_reason=trace.finish_reason.value,
        tokens_sha256="00",
        is_clean=True,
    )


def plain_trace(request_id: int = 0, num: int = 4) -> RequestTrace:
    return RequestTrace(
        request_id=request_id,
        prompt_id=f"p{request_id}",
        num_prompt_tokens=5,
        max_new_tokens=num,
        temperature=0.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=tuple(position % 2 for position in range(num)),
        signals=(Signal(0.1, 0.2, 0.3),) * num,
        tails={position: (Signal(0.5, 0.5, 0.5),) for position in [*range(1, num, 2), num]},
        tail_depth=1,
    )


def op(request_id: int = 0) -> Op:
    return Op(request_id, 0, "draft", "cpu:0", "draft", False, 0.1, 0.2, 1, 1, 1, 30)


@settings(max_examples=40, deadline=None)
@given(trace=request_traces(), rounds=st.lists(st.tuples(any_rounds(), times), max_size=5), is_complete=st.booleans())
def test_what_is_read_equals_what_was_written(
    trace: RequestTrace, rounds: list[tuple[Round, RoundTimes]], is_complete: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        with RunWriter(Path(place) / "run", config={}, meta={}) as writer:
            writer.trace(trace)
            writer.request(record_of(trace))
            writer.rounds(rounds)
            writer.ops([op()])
            if is_complete:
                writer.finish({"tokens": 3})
        run = read_run(Path(place) / "run")
        assert run.is_complete is is_complete
        assert run.traces() == [trace]
        for request_id in range(3):
            found = run.rounds_of(request_id)
            assert found == [settled for settled, _ in rounds if settled.request_id == request_id]
            assert all(type(settled.rollback_case) is RollbackCase for settled in found)
        assert [tuple(row) for row in run.ops.itertuples(index=False)] == [tuple(op())]
        assert run.requests.iloc[0]["noise_key"] == 2**64 - 1
        assert len(run.alignment) == trace.num_tokens
        assert list(run.rounds["start_s"]) == [time.start_s for _, time in rounds]


def test_unknown_signals_come_back_as_unknown_and_not_as_none(tmp_path: Path) -> None:
    trace = plain_trace(num=2)
    object.__setattr__(trace, "signals", (UNKNOWN_SIGNAL,) * 2)
    with RunWriter(tmp_path / "run", config={}, meta={}) as writer:
        writer.trace(trace)
        writer.request(record_of(trace))
    (found,) = read_run(tmp_path / "run").traces()
    assert len(found.signals) == 2
    assert all(math.isnan(value) for signal in found.signals for value in signal)


def test_extra_columns_are_stored_for_committed_positions(tmp_path: Path) -> None:
    top = np.arange(12, dtype=np.int64).reshape(4, 3)
    with RunWriter(tmp_path / "run", config={}, meta={}) as writer:
        writer.trace(plain_trace(), {"token": np.arange(4), "draft_top_ids": top, "draft_top_probs": top / 12})
        writer.finish({})
    found = read_run(tmp_path / "run").alignment
    assert found["token"].tolist() == [0, 1, 2, 3]
    assert [row.tolist() for row in found["draft_top_ids"]] == top.tolist()
    assert found["draft_top_probs"][1].dtype == np.float32
    assert found["overlap"].isna().all()


def test_a_run_from_before_a_column_was_recorded_stays_readable(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", config={}, meta={}) as writer:
        writer.trace(plain_trace(), {"token": np.arange(4), "target_log_moment": np.ones(4)})
        writer.finish({})
    path = tmp_path / "run" / "alignment.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["target_log_moment"]), path)
    found = read_run(tmp_path / "run").alignment
    assert found["target_log_moment"].isna().all()
    assert found["token"].tolist() == [0, 1, 2, 3]
    pq.write_table(table.drop_columns(["draft_entropy"]), path)
    with pytest.raises(RunError, match="other columns"):
        _ = read_run(tmp_path / "run").alignment


@pytest.mark.parametrize("columns", [{"colour": np.zeros(4)}, {"token": np.zeros(5, int)}])
def test_extra_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    writer = RunWriter(tmp_path / "run", config={}, meta={})
    with pytest.raises(ValueError, match="column"):
        writer.trace(plain_trace(), columns)


def test_meta_and_config_are_there_from_the_start(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", config={"seed": np.int64(7), "policies": ("a", "b")}, meta={"device": "cpu"})
    run = read_run(tmp_path / "run")
    assert run.config == {"seed": 7, "policies": ["a", "b"]}
    assert run.meta["device"] == "cpu"
    assert run.meta["versions"]["numpy"] == np.__version__
    assert not run.is_complete
    assert run.ops.empty
    assert run.traces() == []


def test_writing_a_run_does_not_import_torch() -> None:
    code = "import sys, tempfile, traces.folder.writer as r; r.RunWriter(tempfile.mkdtemp(), config={}, meta={}); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


def test_an_exception_leaves_what_was_recorded(tmp_path: Path) -> None:
    def fail() -> None:
        with RunWriter(tmp_path / "run", config={}, meta={}) as writer:
            writer.ops([op(), op()])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    run = read_run(tmp_path / "run")
    assert not run.is_complete
    assert len(run.ops) == 2


def test_summary_holds_only_strict_json(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", config={}, meta={}) as writer:
        writer.finish({"tpot_s": float("nan"), "n": np.int64(3)}, meta={"contention": 0})
    run = read_run(tmp_path / "run")
    assert run.summary == {"tpot_s": None, "n": 3}
    assert run.meta["contention"] == 0
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "alignment.parquet",
        "config.yaml",
        "meta.json",
        "ops.parquet",
        "requests.parquet",
        "rounds.parquet",
        "summary.json",
        "tails.parquet",
    ]


ENDLESS = """
import sys
sys.path.insert(0, {root!r})
from tests_runs import op, plain_trace, record_of
from traces.folder.writer import RunWriter
writer = RunWriter({folder!r}, config={{}}, meta={{}})
for request_id in range(10**9):
    writer.ops([op(request_id)] * 1000)
    writer.request(record_of(plain_trace(request_id)))
    writer.trace(plain_trace(request_id))
    writer.flush()
    print(request_id, flush=True)
"""


def test_a_killed_run_is_readable(tmp_path: Path) -> None:
    (tmp_path / "tests_runs.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    script = ENDLESS.format(root=str(tmp_path), folder=str(tmp_path / "run"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline()
        time.sleep(0.013)  # somewhere within a flush
        child.kill()
        num_flushed = 3 + len(child.stdout.read().splitlines())
    run = read_run(tmp_path / "run")
    assert not run.is_complete
    assert len(run.ops) in (1000 * num_flushed, 1000 * (num_flushed + 1))
    assert run.traces()[:num_flushed] == [plain_trace(request_id) for request_id in range(num_flushed)]


def fail_after(num_ops: int, folder: Path) -> None:
    with RunWriter(folder, config={}, meta={}) as writer:
        writer.ops([op(0)] * num_ops)
        raise KeyError("no such model")


def test_a_run_that_failed_before_its_first_record_can_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_after(0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyError):
        fail_after(1, tmp_path / "run")
    assert len(read_run(tmp_path / "run").ops) == 1


def two_parts(folder: Path) -> None:
    with RunWriter(folder, config={}, meta={}) as writer:
        for request_id in range(2):
            writer.ops([op(request_id)])
            writer.trace(plain_trace(request_id))
            writer.request(record_of(plain_trace(request_id)))
            writer.flush()


def test_a_truncated_part_is_skipped_with_its_name(tmp_path: Path) -> None:
    two_parts(tmp_path / "run")
    part = tmp_path / "run" / "parts" / "00001" / "ops.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"00001/ops\.parquet"):
        found = read_run(tmp_path / "run").ops
    assert found["request_id"].tolist() == [0]


def test_a_trace_without_its_tails_is_left_out(tmp_path: Path) -> None:
    two_parts(tmp_path / "run")
    (tmp_path / "run" / "parts" / "00000" / "tails.parquet").unlink()
    with pytest.warns(UserWarning, match="request 0 lacks tail rows"):
        found = read_run(tmp_path / "run").traces()
    assert found == [plain_trace(1)]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunError, match="never overwritten"):
            RunWriter(place, config={}, meta={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot create the run folder") as caught:
        RunWriter(tmp_path / "file" / "run", config={}, meta={})
    assert "\n" not in str(caught.value)


def test_a_finished_run_takes_no_more(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", config={}, meta={})
    writer.finish({})
    with pytest.raises(RunError, match="finished"):
        writer.ops([op()])


def finished(folder: Path) -> Path:
    two = RunWriter(folder, config={}, meta={})
    two.ops([op()])
    two.finish({})
    return folder


def test_folders_that_are_no_run_say_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no meta\.json"):
        read_run(tmp_path)
    (tmp_path / "meta.json").write_text('{"name": "a web page"}')
    with pytest.raises(RunError, match="no status"):
        read_run(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        read_run(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99"):
        read_run(folder)


def test_a_missing_table_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    (folder / "ops.parquet").unlink()
    with pytest.raises(RunError, match=r"ops\.parquet is missing"):
        _ = read_run(folder).ops
    (folder / "tails.parquet").replace(folder / "ops.parquet")
    with pytest.raises(RunError, match="other columns"):
        _ = read_run(folder).ops
    (folder / "rounds.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="damaged"):
        _ = read_run(folder).rounds
