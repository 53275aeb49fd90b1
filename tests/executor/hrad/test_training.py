"""Training and judging: what is learnt, what is never mixed, scores by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.hrad.ablation import ablate_lengths
from executor.hrad.collection import CollectSettings
from executor.hrad.dataset import Dataset, DatasetMeta, Purpose, load_dataset, save_dataset, with_draft_length
from executor.hrad.evaluation import check_apart, evaluate, expected_calibration_error, measure_cost
from executor.hrad.predictor import HradError, Predictor, load_predictor, save_predictor
from executor.hrad.training import TrainingSettings, split_by_prompt, train
from executor.recording.settings import PromptSettings
from tests.settings import load
from traces.fits.signals import area_under_curve

pytestmark = pytest.mark.long


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


def test_a_shorter_draft_is_accepted_as_far_as_it_goes() -> None:
    data = _separable(2, Purpose.TRAINING, 0)
    cut = with_draft_length(data, 2)
    assert set(cut.num_accepted.tolist()) == {0, 2}
    assert set(cut.labels.tolist()) == {0, 2}
    assert cut.signals.shape[1:] == (2, 3)
    with pytest.raises(HradError, match="larger draft_length"):
        with_draft_length(data, 5)


def test_at_each_draft_length_what_hrad_adds_is_what_both_gain_beyond_the_margin() -> None:
    data, judged = _separable(30, Purpose.TRAINING, 0), _separable(20, Purpose.EVALUATION, 1)
    results = ablate_lengths(data, judged, (3, 4), replace(SETTINGS, num_epochs=3))
    assert [result.draft_length for result in results] == [3, 4]
    for result in results:
        assert result.hrad.gain > result.margin.gain + 0.1  # here the signals say nothing
        assert result.added == result.both.gain - result.margin.gain > 0.1
    never = replace(data, num_accepted=np.where(data.num_accepted == 2, 0, data.num_accepted))
    with pytest.warns(UserWarning, match="draft length 4 is left out: none of the .* is of class confidence"):
        assert ablate_lengths(never, judged, (4,), SETTINGS) == []


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
        CollectSettings(prompts=PromptSettings(source="held_out"))
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
