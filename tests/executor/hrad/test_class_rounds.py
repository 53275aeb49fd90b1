"""Rounds driven by classes against replay; and a predictor is used for what it was made for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from executor.hrad.predictor import CARD_NAME, WEIGHTS_NAME, HradError, Predictor, load_predictor
from executor.pair import Session
from executor.recording.recorder import record_run
from sim.decoding.policies.base import Defaults, Needs, Observation
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.replay import replay
from tests.executor.hrad.small_pair import random_network, settings_of, short_request
from tests.executor.same_rounds import assert_replayed
from tests.settings import load, record_settings
from traces.schema import FinishReason, Signal

LENGTH_OF_CLASS = (1, 2, 5)


@dataclass(frozen=True)
class ByClass(Defaults):
    """Drafts a length for each class: the least that makes rounds depend on H-RAD."""

    @property
    def needs(self) -> Needs:
        return Needs(classes=True)

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        assert seen.class_probs is not None
        return LENGTH_OF_CLASS[seen.class_probs.index(max(seen.class_probs))] - len(pending)


@pytest.fixture(scope="module")
def session(pair: tuple[str, str], predictor_folder: str) -> Session:
    with Session(settings_of(pair, capacity=256, hrad=predictor_folder, is_pinned=False)) as opened:
        yield opened  # type: ignore[misc] # a fixture


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_rounds_driven_by_classes_replay_identically(session: Session, temperature: float) -> None:
    done = session.run(short_request(temperature), ByClass())
    trace = session.annotate(done, request_id=0).trace
    assert len(trace.class_probs) == len(done.tokens) + 1
    rounds = [round_ for round_, _ in done.rounds]
    assert_replayed(rounds, ByClass(), trace)
    if temperature > 0:  # greedily this random target repeats itself
        assert len({round_.predicted_class for round_ in rounds}) > 1, "the test needs more than one class"
    verify_s = sum(times.verify_s for _, times in done.rounds)
    assert 0 < done.predict_s < verify_s
    predict, verify = (
        sum(op.end_s - op.start_s for op in done.ops if op.kind.startswith(kind)) for kind in ("predict", "verify")
    )
    assert predict == pytest.approx(done.predict_s)
    assert predict + verify == pytest.approx(verify_s)


def test_rounds_replay_when_the_request_ends_within_accepted_tokens(session: Session) -> None:
    whole = session.run(short_request(1.0), ByClass())
    inside = next(round_ for round_, _ in whole.rounds if round_.num_accepted > 1 and round_.round)
    stop = whole.tokens[inside.position]  # accepted in its round, and not the last token there
    cut = short_request(1.0)
    session.eos_ids, eos_ids = frozenset({stop}), session.eos_ids
    try:
        done = session.run(cut, ByClass())
    finally:
        session.eos_ids = eos_ids
    assert done.finish_reason is FinishReason.EOS
    trace = session.annotate(done, request_id=0).trace
    assert_replayed([round_ for round_, _ in done.rounds], ByClass(), trace)


def test_nothing_is_predicted_for_a_policy_that_does_not_ask(session: Session) -> None:
    @dataclass(frozen=True)
    class Blind(Defaults):
        def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
            assert seen.class_probs is None
            return 2 - len(pending)

    done = session.run(short_request(1.0), Blind())
    assert done.predict_s == 0
    assert done.tokens == session.run(short_request(1.0), ByClass()).tokens
    assert session.annotate(done, request_id=0).trace.class_probs  # the trace can still answer the others


def test_a_policy_with_classes_needs_a_predictor(pair: tuple[str, str], tmp_path: Path) -> None:
    with (
        Session(settings_of(pair, capacity=256, is_pinned=False)) as bare,
        pytest.raises(HradError, match="no predictor is loaded"),
    ):
        bare.run(short_request(0.0), ByClass())


def test_a_predictor_of_another_pair_is_refused(pair: tuple[str, str], predictor_folder: str) -> None:
    with pytest.raises(HradError, match="another draft"):
        Session(settings_of((pair[0], pair[0]), hrad=predictor_folder))
    with pytest.raises(HradError, match="another target"):
        Session(settings_of((pair[1], pair[1]), hrad=predictor_folder))


def test_a_predictor_of_another_width_is_refused(pair: tuple[str, str], predictor_folder: str) -> None:
    with pytest.raises(HradError, match="the target has 1 blocks of 64"):
        load_predictor(predictor_folder).check_engine(load(pair[1], capacity=64))


def test_a_stored_predictor_predicts_the_same(predictor_folder: str) -> None:
    loaded = load_predictor(predictor_folder)
    original = Predictor(loaded.card, random_network(loaded.card, sharpness=4.0))
    inputs = torch.randn(50, loaded.card.num_inputs, generator=torch.Generator().manual_seed(0))
    difference = (loaded.from_inputs(inputs) - original.from_inputs(inputs)).abs().max().item()
    assert difference < 5e-3, f"float16 storage moved a probability by {difference:.4f}"
    assert torch.allclose(loaded.from_inputs(inputs).sum(-1), torch.ones(50))


def test_weights_that_are_a_pickle_or_do_not_fit_are_refused(predictor_folder: str, tmp_path: Path) -> None:
    card_text = (Path(predictor_folder) / CARD_NAME).read_text()
    (tmp_path / CARD_NAME).write_text(card_text)

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / WEIGHTS_NAME).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(HradError, match="cannot read the weights"):
        load_predictor(tmp_path)
    assert not (tmp_path / "exploded").exists()
    (tmp_path / WEIGHTS_NAME).write_bytes((Path(predictor_folder) / WEIGHTS_NAME).read_bytes())
    (tmp_path / CARD_NAME).write_text(card_text.replace('"hidden_size": 128', '"hidden_size": 64'))
    with pytest.raises(HradError, match="cannot read the weights"):
        load_predictor(tmp_path)
    (tmp_path / CARD_NAME).write_text(card_text.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(HradError, match="schema version 99"):
        load_predictor(tmp_path)
    with pytest.raises(HradError, match="no H-RAD predictor"):
        load_predictor(tmp_path / "nowhere")


def test_a_policy_of_another_window_than_the_predictors_is_refused_everywhere(
    session: Session, pair: tuple[str, str], predictor_folder: str, tmp_path: Path
) -> None:
    fits = SpecBranch(3, 2, prior_length=2)
    others = [
        SpecBranch(4, 2),
        SpecBranch(2, 2),
        SpecBranch(3, 2, prior_length=4),
        OutcomeHedging(draft_length=5, uses_hrad=True),
    ]
    done = session.run(short_request(1.0), fits)
    recorded = session.annotate(done, request_id=0).trace
    traced = replace(recorded, class_window=3)
    assert_replayed([round_ for round_, _ in done.rounds], fits, traced)
    for policy in others:
        with pytest.raises(
            HradError, match=r"window has . draft tokens, but .* classes speak of 3; take draft_length=3"
        ):
            session.run(short_request(1.0), policy)
        with pytest.raises(ValueError, match="classes speak of 3"):
            replay(policy, traced)
    settings = record_settings(
        target=pair[0], draft=pair[1], hrad=predictor_folder, policies=("specbranch:draft_length=4",), is_pinned=False
    )
    with pytest.raises(HradError, match="classes speak of 3"):
        record_run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
