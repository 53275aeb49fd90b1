"""H-RAD: labels and features by hand, online against one pass, rounds against replay, training, storage, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from executor.embedded_pair.shapes import Shape, build_model, save_model
from executor.embedded_pair.tokens import train_tokenizer
from executor.hrad.collection import CollectSettings
from executor.hrad.dataset import (
    Dataset,
    DatasetMeta,
    Purpose,
    accepted_lengths,
    classes_of,
    drafted_signals,
    load_dataset,
    save_dataset,
)
from executor.hrad.evaluation import check_apart, evaluate, expected_calibration_error, measure_cost
from executor.hrad.features import class_inputs, class_inputs_along
from executor.hrad.predictor import (
    CARD_NAME,
    WEIGHTS_NAME,
    HradError,
    Predictor,
    PredictorCard,
    load_predictor,
    make_network,
    save_predictor,
)
from executor.hrad.training import TrainingSettings, split_by_prompt, train
from executor.models.loading import fingerprint
from executor.models.settings import PairSettings
from executor.pair import Session
from executor.request import Request
from executor.roles.target_side import TargetSide, load_target
from sim.decoding.policies.base import Defaults, Needs, Observation
from tests.executor.same_rounds import assert_replayed
from tests.settings import load, pair_settings
from traces.fits.signals import area_under_curve
from traces.schema import FinishReason, RequestTrace, Sampling, Signal

PROMPT = tuple(range(40, 60))
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
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A random target of three blocks and a random draft of one."""
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 260)
    for name, num_layers, hidden_size in (("target", 3, 128), ("draft", 1, 64)):
        shape = Shape(num_layers=num_layers, hidden_size=hidden_size, intermediate_size=96)
        model = build_model(shape, vocab_size=tokenizer.get_vocab_size(), max_length=256, seed=num_layers)
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
        save_model(model, tokenizer, folder / name)
    return str(folder / "target"), str(folder / "draft")


@pytest.fixture(scope="module")
def predictor_folder(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained predictor of the pair, sharp enough to name every class."""
    folder = tmp_path_factory.mktemp("predictor")
    card = PredictorCard(
        target_fingerprint=fingerprint(pair[0]),
        draft_fingerprint=fingerprint(pair[1]),
        draft_length=3,
        num_feature_layers=2,
        hidden_size=128,
        embedding_size=128,
        widths=(24, 8),
        temperatures=(0.0, 1.0),
        num_positions=0,
        prompt_keys=("a", "b"),
    )
    network = _network(card, sharpness=4.0)
    save_predictor(folder, card, network)
    return str(folder)


def _network(card: PredictorCard, sharpness: float = 1.0) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = make_network(card.num_inputs, card.widths, dropout=0.2).eval()
    for parameter in network.parameters():
        parameter.data.mul_(sharpness)
    return network


def _request(temperature: float, **settings: object) -> Request:
    base = Request(prompt_id="p", tokens=PROMPT, max_new_tokens=40, sampling=Sampling(temperature), seed=3, noise_key=5)
    return replace(base, **settings)  # type: ignore[arg-type] # one test's own settings


# Labels and features by hand.


def test_labels_follow_the_accepted_run() -> None:
    ranks = [0, 0, 0, 2, 0, 0, 1, 0]
    assert accepted_lengths(ranks, 3).tolist() == [3, 2, 1, 0, 2, 1]
    assert classes_of(np.array([3, 2, 1, 0]), 3).tolist() == [2, 1, 1, 0]
    assert accepted_lengths([0, 0], 3).tolist() == []  # too short for a full draft: nothing is known


def test_drafted_signals_leave_the_path_after_the_wrong_token() -> None:
    def signal(value: float) -> Signal:
        return Signal(value, value, value)

    trace = RequestTrace(
        request_id=0,
        prompt_id="p",
        num_prompt_tokens=1,
        max_new_tokens=4,
        temperature=0.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=(0, 2, 0, 0),
        signals=tuple(signal(v) for v in (10, 11, 12, 13)),
        tails={1: (signal(21), signal(22)), 4: (signal(31), signal(32))},
        tail_depth=2,
    )
    found = drafted_signals(trace, 2, 3)[..., 0]
    assert found.tolist() == [[10, 11, 21], [11, 21, 22]]


def test_inputs_are_normalised_blocks_and_the_embedding() -> None:
    features = torch.tensor([[[3.0, 4.0], [0.0, 0.1]]])
    found = class_inputs(features, torch.tensor([[7.0, -8.0, 9.0]]))
    scale = 2**0.5
    expected = [[0.6 * scale, 0.8 * scale, 0.0, scale, 7.0, -8.0, 9.0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["static", "hugging_face"])
def test_inputs_along_a_sequence_are_those_of_the_whole_forward(pair: tuple[str, str], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    tokens, num_prompt = [*PROMPT, *range(70, 150)], len(PROMPT)
    engine = load(pair[0], engine=kind, capacity=256, num_feature_layers=2)
    with torch.inference_mode():
        found = torch.cat(list(class_inputs_along(engine, tokens, num_prompt)))
        model = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32)
        kept: dict[int, Tensor] = {}
        for index in (1, 2):
            model.model.layers[index].register_forward_hook(lambda m, i, out, index=index: kept.update({index: out}))
        model(input_ids=torch.tensor([tokens]))
        embeddings = model.get_input_embeddings()(torch.tensor(tokens))
    blocks = [(kept[index] if isinstance(kept[index], Tensor) else kept[index][0]).reshape(-1, 128) for index in (1, 2)]
    assert len(found) == len(tokens) - num_prompt + 1
    for position in (0, 1, 40, 80):
        newest = num_prompt - 1 + position
        expected = class_inputs(torch.stack([b[newest - 1] for b in blocks])[None], embeddings[newest][None])[0]
        torch.testing.assert_close(found[position], expected, atol=1e-4, rtol=1e-4)


def test_features_of_rounds_are_those_of_one_pass(pair: tuple[str, str], predictor_folder: str) -> None:
    """Whatever was pending, accepted or rejected, online inputs equal the teacher-forced ones."""
    target, predictor = load_target(pair_settings(target=pair[0], capacity=256, hrad=predictor_folder))
    side = TargetSide(target, predictor)
    request = Request(prompt_id="p", tokens=PROMPT, max_new_tokens=60, sampling=Sampling(0.0))
    seen: list[Tensor] = []

    class Spy(Predictor):
        def from_inputs(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return super().from_inputs(inputs)

    def verified(num_cached: int, last: int, pending: list[int]) -> tuple[int, int]:
        side.submit(pending, last=last, num_cached=num_cached)
        verdict = side.wait_verdict()
        return verdict.num_accepted, verdict.next_token

    predictor.__class__ = Spy  # type: ignore[assignment] # the very object, looked over the shoulder
    with torch.inference_mode():
        side.begin(request, predicts=True)
        reference = list(PROMPT)
        for _ in range(60):  # the target's own continuation, one token a time
            reference.append(verified(len(reference) - 1, reference[-1], [])[1])
        seen.clear()
        side.begin(request, predicts=True)
        ends = [len(PROMPT)]
        for right, wrong in ((3, 2), (0, 1), (4, 0), (1, 4), (0, 0), (2, 2)):
            at = ends[-1]
            pending = reference[at : at + right] + [(reference[at + right] + 1) % 200] * wrong
            num_accepted, next_token = verified(at - 1, reference[at - 1], pending)
            assert (num_accepted, next_token) == (right, reference[at + right])
            ends.append(at + right + 1)
        engine = load(pair[0], capacity=256, num_feature_layers=2)
        along = torch.cat(list(class_inputs_along(engine, reference, len(PROMPT))))
    assert len(seen) == len(ends)
    for inputs, end in zip(seen, ends, strict=True):
        torch.testing.assert_close(inputs[0], along[end - len(PROMPT)], atol=1e-5, rtol=1e-5)


# Rounds with classes.


def _pair(names: tuple[str, str], **settings: object) -> PairSettings:
    return pair_settings(target=names[0], draft=names[1], **settings)


@pytest.fixture(scope="module")
def session(pair: tuple[str, str], predictor_folder: str) -> Session:
    with Session(_pair(pair, capacity=256, hrad=predictor_folder, is_pinned=False)) as opened:
        yield opened  # type: ignore[misc] # a fixture


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_rounds_driven_by_classes_replay_identically(session: Session, temperature: float) -> None:
    done = session.run(_request(temperature), ByClass())
    trace = session.annotate(done, request_id=0).trace
    assert len(trace.class_probs) == len(done.tokens) + 1
    rounds = [turn for turn, _ in done.rounds]
    assert_replayed(rounds, ByClass(), trace)
    if temperature > 0:  # greedily this random target repeats itself
        assert len({turn.predicted_class for turn in rounds}) > 1, "the test needs more than one class"
    verify_s = sum(times.verify_s for _, times in done.rounds)
    assert 0 < done.predict_s < verify_s
    predict, verify = (
        sum(op.end_s - op.start_s for op in done.ops if op.kind.startswith(kind)) for kind in ("predict", "verify")
    )
    assert predict == pytest.approx(done.predict_s)
    assert predict + verify == pytest.approx(verify_s)


def test_rounds_replay_when_the_request_ends_within_accepted_tokens(session: Session) -> None:
    whole = session.run(_request(1.0), ByClass())
    inside = next(turn for turn, _ in whole.rounds if turn.num_accepted > 1 and turn.round)
    stop = whole.tokens[inside.position]  # accepted in its round, and not the last token there
    cut = _request(1.0)
    session.eos_ids, eos_ids = frozenset({stop}), session.eos_ids
    try:
        done = session.run(cut, ByClass())
    finally:
        session.eos_ids = eos_ids
    assert done.finish_reason is FinishReason.EOS
    trace = session.annotate(done, request_id=0).trace
    assert_replayed([turn for turn, _ in done.rounds], ByClass(), trace)


def test_nothing_is_predicted_for_a_policy_that_does_not_ask(session: Session) -> None:
    @dataclass(frozen=True)
    class Blind(Defaults):
        def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
            assert seen.class_probs is None
            return 2 - len(pending)

    done = session.run(_request(1.0), Blind())
    assert done.predict_s == 0
    assert done.tokens == session.run(_request(1.0), ByClass()).tokens
    assert session.annotate(done, request_id=0).trace.class_probs  # the trace can still answer the others


def test_a_policy_with_classes_needs_a_predictor(pair: tuple[str, str], tmp_path: Path) -> None:
    with (
        Session(_pair(pair, capacity=256, is_pinned=False)) as bare,
        pytest.raises(HradError, match="no predictor is loaded"),
    ):
        bare.run(_request(0.0), ByClass())


# What a predictor is used for is what it was made for.


def test_a_predictor_of_another_pair_is_refused(pair: tuple[str, str], predictor_folder: str) -> None:
    with pytest.raises(HradError, match="another draft"):
        Session(_pair((pair[0], pair[0]), hrad=predictor_folder))
    with pytest.raises(HradError, match="another target"):
        Session(_pair((pair[1], pair[1]), hrad=predictor_folder))


def test_a_predictor_of_another_width_is_refused(pair: tuple[str, str], predictor_folder: str) -> None:
    with pytest.raises(HradError, match="the target has 1 blocks of 64"):
        load_predictor(predictor_folder).check_engine(load(pair[1], capacity=64))


def test_a_stored_predictor_predicts_the_same(predictor_folder: str) -> None:
    loaded = load_predictor(predictor_folder)
    original = Predictor(loaded.card, _network(loaded.card, sharpness=4.0))
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


# Training and judging.


def _separable(num_prompts: int, purpose: Purpose, seed: int) -> Dataset:
    """Three clouds in eight dimensions, of unequal sizes; signals that say nothing."""
    rng = np.random.default_rng(seed)
    num = 60 * num_prompts
    labels = rng.choice(3, num, p=[0.2, 0.7, 0.1])
    centres = np.zeros((3, 8))
    centres[np.arange(3), np.arange(3)] = 3.0
    meta = DatasetMeta(
        purpose=purpose,
        target_fingerprint="t",
        draft_fingerprint="d",
        draft_length=4,
        num_feature_layers=1,
        hidden_size=5,
        embedding_size=3,
        temperatures=(1.0,),
        prompt_keys=tuple(f"{purpose}-{index}" for index in range(num_prompts)),
    )
    return Dataset(
        meta=meta,
        inputs=(centres[labels] + rng.standard_normal((num, 8))).astype(np.float16),
        num_accepted=np.array([0, 2, 4])[labels],
        signals=rng.random((num, 4, 3)).astype(np.float32),
        running_rate=np.full(num, 0.5),
        prompts=np.repeat(np.arange(num_prompts), 60),
        temperatures=np.ones(num),
    )


SETTINGS = TrainingSettings(widths=(16, 8), num_epochs=6, batch_size=64)


def test_training_beats_the_baselines_where_classes_are_separable(tmp_path: Path) -> None:
    data, judged = _separable(30, Purpose.TRAINING, 0), _separable(20, Purpose.EVALUATION, 1)
    trained = train(data, SETTINGS)
    save_predictor(tmp_path, trained.card, trained.network)
    found = evaluate(load_predictor(tmp_path), data, judged)
    by_name = {rule.name: rule for rule in found.rules}
    hrad = by_name["H-RAD"]
    assert hrad.gain_interval[0] > 0.3, f"gain {hrad.gain:.3f} {hrad.gain_interval}"
    assert abs(by_name["noisy margin"].gain) < 0.03
    assert min(hrad.auc_reject, hrad.auc_accept) > 0.95
    assert hrad.calibration_error < 0.03, f"{hrad.calibration_error=:.3f}"
    assert sum(map(sum, hrad.confusion)) == len(judged) == found.num_positions
    assert trained.card.num_inputs == 8
    assert set(trained.card.held_back_keys) < set(trained.card.prompt_keys)


def test_balanced_outputs_name_rare_classes_more_often() -> None:
    data = _separable(30, Purpose.TRAINING, 0)
    inputs = torch.from_numpy(data.inputs.astype(np.float32))

    def share_of_accept(is_calibrated: bool) -> float:
        trained = train(data, replace(SETTINGS, is_calibrated=is_calibrated))
        return float(Predictor(trained.card, trained.network).from_inputs(inputs)[:, 2].mean())

    calibrated, balanced = share_of_accept(True), share_of_accept(False)
    assert abs(calibrated - 0.1) < 0.02, f"{calibrated=:.3f}"
    assert balanced > calibrated + 0.02, f"{balanced=:.3f} {calibrated=:.3f}"


def test_a_prompt_is_never_split() -> None:
    prompts = np.repeat(np.arange(11), 7)
    held_back = split_by_prompt(prompts, 0.3, np.random.default_rng(0))
    assert held_back.sum() == 3 * 7
    assert not set(prompts[held_back]) & set(prompts[~held_back])


def test_training_and_evaluation_never_mix() -> None:
    data, judged = _separable(10, Purpose.TRAINING, 0), _separable(10, Purpose.EVALUATION, 1)
    trained = train(data, replace(SETTINGS, num_epochs=1))
    predictor = Predictor(trained.card, trained.network)
    with pytest.raises(HradError, match="never trained on evaluation data"):
        train(judged)
    with pytest.raises(HradError, match="never judged on training data"):
        check_apart(predictor, data, data)
    overlapping = replace(judged, meta=replace(judged.meta, prompt_keys=(*judged.meta.prompt_keys[1:], "training-3")))
    with pytest.raises(HradError, match="1 of 10 evaluation prompts were trained on"):
        check_apart(predictor, data, overlapping)
    with pytest.raises(HradError, match="held_out prompts are never used for training"):
        CollectSettings(prompts="held_out")
    with pytest.raises(HradError, match="training prompts are never used for evaluation"):
        CollectSettings(purpose=Purpose.EVALUATION)


def test_a_class_that_never_happened_is_named() -> None:
    data = _separable(10, Purpose.TRAINING, 0)
    with pytest.raises(HradError, match="of class accept"):
        train(replace(data, num_accepted=np.minimum(data.num_accepted, 2)))


def test_a_dataset_comes_back_as_it_was(tmp_path: Path) -> None:
    data = _separable(3, Purpose.TRAINING, 0)
    save_dataset(tmp_path, data)
    found = load_dataset(tmp_path)
    assert found.meta == data.meta
    assert np.array_equal(found.inputs, data.inputs)
    assert np.array_equal(found.labels, data.labels)
    (tmp_path / "dataset.safetensors").write_bytes(b"nothing")
    with pytest.raises(HradError, match="collect the data again"):
        load_dataset(tmp_path)


def test_scores_by_hand() -> None:
    assert area_under_curve(np.array([0.9, 0.8, 0.1]), np.array([True, False, False])) == 1.0
    assert np.isnan(area_under_curve(np.array([0.9, 0.8]), np.array([True, True])))
    labels = np.array([0, 1, 2] * 100)
    assert expected_calibration_error(np.full((300, 3), 1 / 3), labels) < 0.02
    sure = np.tile([0.8, 0.1, 0.1], (300, 1))
    expected = (7 / 15 + 7 / 30 + 7 / 30) / 3
    assert abs(expected_calibration_error(sure, labels) - expected) < 0.02


def test_the_cost_is_measured_on_the_target_itself(pair: tuple[str, str], predictor_folder: str) -> None:
    engine = load(pair[0], capacity=64)
    cost = measure_cost(load_predictor(predictor_folder), engine, num_repeats=20)
    assert 0 < cost.share < 1
    assert cost.share == cost.predict_s / (cost.predict_s + cost.verify_s)
