"""A recording that was cut short goes on where it stopped, and ends as if it had never been."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.pair import Session
from executor.recording.recorder import record_run
from tests.settings import record_settings
from traces.folder.run import Run, RunError, read_run
from traces.folder.writer import RunWriter
from traces.schema import Op

SETTINGS = record_settings(
    num_prompts=3, temperatures=[0.0, 1.0], max_new_tokens=6, policies=["autoregressive", "fixed_length:draft_length=2"]
)
KEY = ["prompt_id", "temperature", "policy", "repeat"]


class Killed(BaseException):
    """What no handler in the recorder expects."""


@pytest.fixture(scope="module")
def whole(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record_run(SETTINGS, tmp_path_factory.mktemp("whole") / "run", session=session)


def _cut_after(num: int, name: str, folder: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose process died at this call of the writer, so that nothing was flushed afterwards."""
    left, inner = [num], getattr(RunWriter, name)

    def dies(self: RunWriter, *given: object) -> object:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return inner(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, name, dies)
        patched.setattr(RunWriter, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            record_run(SETTINGS, folder, session=session)


@pytest.mark.parametrize(
    ("num", "name"),
    [(0, "ops"), (0, "flush"), (1, "flush"), (2, "trace"), (5, "flush"), (4, "trace"), (11, "ops"), (3, "_merged")],
)
def test_a_resumed_run_holds_what_an_uninterrupted_one_holds(
    num: int, name: str, whole: Run, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_after(num, name, tmp_path / "run", session, monkeypatch)
    cut = read_run(tmp_path / "run")
    assert not cut.is_complete
    before = len(cut.requests)
    run = record_run(SETTINGS, tmp_path / "run", session=session, resumes=True)
    assert run.is_complete
    assert run.summary["tokens_identical"] is True
    first, second = (each.requests.set_index(KEY).sort_index() for each in (whole, run))
    assert not second.index.duplicated().any()
    assert first.tokens_sha256.equals(second.tokens_sha256)
    assert {trace.prompt_id: trace.ranks for trace in whole.traces() if trace.temperature} == {
        trace.prompt_id: trace.ranks for trace in run.traces() if trace.temperature
    }
    assert len(run.traces()) == len(whole.traces())
    assert len(run.rounds) == len(whole.rounds)
    assert set(run.ops.request_id) == set(run.requests.request_id)
    in_order = run.requests.sort_values("request_id")
    assert (in_order.arrival_s.to_numpy()[1:] >= in_order.finish_s.to_numpy()[:-1]).all()
    assert in_order.request_id.is_unique
    assert read_run(tmp_path / "run").requests.head(before).equals(cut.requests)


def test_an_end_that_failed_does_not_hide_what_comes_after_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables that were merged already are read in place of the parts, which hold all and will hold more."""
    _cut_after(3, "_merged", tmp_path / "run", session, monkeypatch)
    assert (tmp_path / "run" / "requests.parquet").exists()
    cut = read_run(tmp_path / "run")
    with RunWriter(tmp_path / "run", config=cut.config, meta={}, resumes=True) as writer:
        writer.ops([Op(*row) for row in cut.ops.assign(request_id=99).head(2).itertuples(index=False, name=None)])
    assert len(read_run(tmp_path / "run").ops) == len(cut.ops) + 2
    assert len(read_run(tmp_path / "run").requests) == len(cut.requests)


def test_resuming_nothing_begins(session: Session, whole: Run, tmp_path: Path) -> None:
    run = record_run(SETTINGS, tmp_path / "run", session=session, resumes=True)
    assert len(run.requests) == len(whole.requests)


def test_what_cannot_be_resumed_is_said(
    whole: Run, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="is complete, there is nothing to resume"):
        record_run(SETTINGS, whole.folder, session=session, resumes=True)
    _cut_after(3, "flush", tmp_path / "run", session, monkeypatch)
    other = record_settings(num_prompts=4, temperatures=[0.0, 1.0], max_new_tokens=6)
    with pytest.raises(RunError, match=r"other settings \(decoding, prompts\)"):
        record_run(other, tmp_path / "run", session=session, resumes=True)
    with pytest.raises(RunError, match="already holds something"):
        record_run(SETTINGS, tmp_path / "run", session=session)
