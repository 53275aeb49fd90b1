"""The order in which a run decodes: pure functions of requests and policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.recording.recorder import record_run
from executor.recording.schedule import Decoding, interleaved, rotated
from executor.request import Request
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from tests.settings import record_settings
from traces.schema import Sampling

PLAIN, FIXED, PEARL = Autoregressive(), FixedLength(3), Pearl(4)


def _requests(*names: str) -> list[Request]:
    return [Request(prompt_id=name, tokens=(1,), max_new_tokens=4, sampling=Sampling()) for name in names]


def test_policies_take_turns_on_each_request_and_a_repeat_begins_with_another_one() -> None:
    first, second = _requests("a", "b")
    assert rotated([first, second], [PLAIN, FIXED, PEARL], repeats=2) == [
        *(Decoding(first, policy, 0) for policy in (PLAIN, FIXED, PEARL)),
        *(Decoding(second, policy, 0) for policy in (FIXED, PEARL, PLAIN)),
        *(Decoding(first, policy, 1) for policy in (FIXED, PEARL, PLAIN)),
        *(Decoding(second, policy, 1) for policy in (PEARL, PLAIN, FIXED)),
    ]


def test_two_lists_are_interleaved_and_the_longer_one_ends() -> None:
    new, old = _requests("n1", "n2", "n3"), _requests("o1")
    assert [request.prompt_id for request in interleaved(new, old)] == ["n1", "o1", "n2", "n3"]
    assert [request.prompt_id for request in interleaved(old, new)] == ["o1", "n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acceptance": "law:alpha=0.5"}, "unknown acceptance 'law'"),
        ({"policies": ["autoregressive", "prompt_lookup"]}, "--draft prompt_lookup"),
        ({"policies": ["specbranch"]}, "no predictor is loaded"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(
    settings: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor.recording.recorder.Session", None)
    with pytest.raises(ValueError, match=message):
        record_run(record_settings(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
