"""The order in which a run decodes: pure functions of requests and policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from executor.pair import Session
from executor.recording.recorder import record_run
from executor.recording.schedule import in_blocks, interleaved
from executor.recording.settings import PromptForm, PromptSettings, read_settings
from executor.request import Request
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from tests.settings import record_settings
from traces.schema import Sampling

PLAIN, FIXED, PEARL = Autoregressive(), FixedLength(3), Pearl(4)


def _requests(*names: str) -> list[Request]:
    return [Request(prompt_id=name, tokens=(1,), max_new_tokens=4, sampling=Sampling()) for name in names]


def test_a_block_is_a_request_under_all_of_its_policies_in_an_order_of_its_own() -> None:
    requests = _requests(*"abcdefgh")
    policies = [PLAIN, FIXED, PEARL]
    blocks = in_blocks(requests, lambda _: policies, repeats=2, seed=1)
    assert [block[0].request for block in blocks] == requests * 2
    for index, block in enumerate(blocks):
        assert {decoding.request for decoding in block} == {block[0].request}
        assert {decoding.repeat for decoding in block} == {index // len(requests)}
        assert sorted(decoding.policy.draft_length for decoding in block if decoding.policy != PLAIN) == [3, 4]
        assert len(block) == 3
    assert len({tuple(decoding.policy for decoding in block) for block in blocks}) > 3
    assert blocks == in_blocks(requests, lambda _: policies, repeats=2, seed=1)


def test_a_policy_named_twice_runs_twice_in_every_block_under_two_labels() -> None:
    blocks = in_blocks(_requests("a", "b"), lambda _: [PLAIN, PLAIN, FIXED], repeats=2)
    repeats = [sorted(decoding.repeat for decoding in block if decoding.policy == PLAIN) for block in blocks]
    assert repeats == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [decoding.repeat for block in blocks for decoding in block if decoding.policy == FIXED] == [0, 0, 1, 1]


def test_each_request_has_its_own_policies() -> None:
    first, second = _requests("a", "b")
    blocks = in_blocks([first, second], lambda request: [PLAIN] if request is first else [FIXED, PEARL])
    assert [len(block) for block in blocks] == [1, 2]


def test_two_lists_are_interleaved_and_the_longer_one_ends() -> None:
    new, old = _requests("n1", "n2", "n3"), _requests("o1")
    assert [request.prompt_id for request in interleaved(new, old)] == ["n1", "o1", "n2", "n3"]
    assert [request.prompt_id for request in interleaved(old, new)] == ["o1", "n1", "n2", "n3"]
    new, old = _requests("n1", "n2", "n3", "n4", "n5"), _requests("o1", "o2")
    expected = ["n1", "n2", "o1", "n3", "n4", "o2", "n5"]
    assert [request.prompt_id for request in interleaved(new, old, num=2)] == expected


@pytest.mark.parametrize(("num", "timed"), [(None, {0, 1, 2, 3}), (4, {0, 1, 2, 3}), (2, {1, 3}), (1, {3})])
def test_timed_prompts_are_spread_over_all(num: int | None, timed: set[int]) -> None:
    settings = PromptSettings(num=4, num_timed=num)
    assert {index for index in range(4) if settings.is_timed(index)} == timed


def test_prompts_that_are_not_timed_run_under_the_first_policy_alone(session: Session, tmp_path: Path) -> None:
    settings = record_settings(
        num_prompts=4, temperatures=[0.0, 1.0], max_new_tokens=6, policies=["autoregressive", "probe"]
    )
    settings = replace(settings, prompts=replace(settings.prompts, num_timed=2))
    run = record_run(settings, tmp_path / "run", session=session)
    ran = run.requests.groupby("prompt_id", sort=False).policy.agg(
        lambda policies: {name.split(":")[0] for name in policies}
    )
    assert ran.tolist() == [{"autoregressive"}, {"autoregressive", "probe"}] * 2
    assert len(run.traces()) == 8  # their acceptance is known all the same
    assert read_settings(run.config) == settings


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


def test_a_run_says_how_its_prompts_were_given(session: object, tmp_path: Path) -> None:
    settings = record_settings(capacity=512, num_prompts=1, max_new_tokens=2, policies=("autoregressive",))
    settings = replace(settings, prompts=replace(settings.prompts, form=PromptForm.AUTO))
    run = record_run(settings, tmp_path / "run", session=session)
    assert run.config["prompts"]["form"] == "raw"
    assert set(run.meta["weight_layouts"]) == {"target", "draft"}
    assert set(run.meta["weight_layouts"]["target"].values()) <= {"plain", "packed", "both"}
    assert len(run.meta["weight_layouts"]["target"]) == 5
