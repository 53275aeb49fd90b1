"""How good class predictions are: accuracy, log-loss, calibration, separability, and what a prediction costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from executor.hrad.baselines import Probs, Rule, fit_baselines, fit_combination, predict
from executor.hrad.dataset import ACCEPT, REJECT, Dataset, Purpose
from executor.hrad.predictor import CLASS_NAMES, HradError, Predictor, PredictorCard
from executor.models.engines.base import Engine
from executor.recording.contention import ContentionMeter
from traces.fits.signals import area_under_curve

NUM_BINS = 10
NUM_RESAMPLES = 300
COST_CONTEXT = 128  # tokens in the cache while costs are measured
Labels = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One rule on evaluation data; 95% intervals by resampling whole prompts.

    gain: mean log-loss of the constant minus that of the rule, in nats a position. balanced_accuracy: mean recall of
    the classes. calibration_error: `expected_calibration_error`. auc_reject, auc_accept: one class against the rest.
    """

    name: str
    sees: str
    log_loss: float
    gain: float
    gain_interval: Interval
    accuracy: float
    balanced_accuracy: float
    calibration_error: float
    auc_reject: float
    auc_reject_interval: Interval
    auc_accept: float
    auc_accept_interval: Interval
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Predictions of one class within one bin: mean predicted chance, observed share, how many."""

    class_name: str
    mean_predicted: float
    observed: float
    num: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians over repetitions on one core, in seconds: a prediction, and a verification of draft_length tokens.
    is_clean: whether nothing else used the cores meanwhile."""

    predict_s: float
    verify_s: float
    is_clean: bool = True

    @property
    def share(self) -> float:
        """Prediction over verification and prediction together."""
        return self.predict_s / (self.predict_s + self.verify_s)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that is known of a predictor. by_temperature: H-RAD alone, against the constant there."""

    num_positions: int
    num_prompts: int
    class_shares: list[float]
    rules: list[Quality]
    by_temperature: dict[float, Quality]
    reliability: list[ReliabilityBin]
    cost: Cost | None


def evaluate(
    predictor: Predictor, training: Dataset, evaluation: Dataset, *, cost: Cost | None = None, seed: int = 0
) -> Evaluation:
    """Judge a predictor beside the baselines, on prompts that neither has seen.

    training: the data that the predictor was trained on, to which the baselines are fitted. cost: as `measure_cost` gives
    it. Raises HradError where `check_apart` refuses the data.
    """
    check_apart(predictor, training, evaluation)
    held_back = np.isin(np.asarray(training.meta.prompt_keys)[training.prompts], predictor.card.held_back_keys)
    hrad = Rule("H-RAD", "target features", lambda data: predict(predictor, data))
    rules = [*fit_baselines(training), hrad, fit_combination(predictor, training.rows(held_back))]
    constant = rules[0]
    base = constant.predict(evaluation)
    by_temperature = {}
    for value in np.unique(evaluation.temperatures):
        rows = evaluation.rows(evaluation.temperatures == value)
        by_temperature[float(value)] = quality(hrad, rows, constant.predict(rows), seed=seed)
    return Evaluation(
        num_positions=len(evaluation),
        num_prompts=len(np.unique(evaluation.prompts)),
        class_shares=(np.bincount(evaluation.labels, minlength=len(CLASS_NAMES)) / len(evaluation)).tolist(),
        rules=[quality(rule, evaluation, base, seed=seed) for rule in rules],
        by_temperature=by_temperature,
        reliability=reliability(hrad.predict(evaluation), evaluation.labels),
        cost=cost,
    )


def check_apart(predictor: Predictor, training: Dataset, evaluation: Dataset) -> None:
    """Raise HradError for data of another pair or shape, and for evaluation on prompts that were trained on."""
    if evaluation.meta.purpose is not Purpose.EVALUATION:
        raise HradError("a predictor is never judged on training data; collect evaluation data from other prompts.")
    card = predictor.card
    if set(training.meta.prompt_keys) != set(card.prompt_keys):
        raise HradError("this is not the data that the predictor was trained on; give the folder that hrad train read.")
    check_prompts_apart(card, evaluation.meta.prompt_keys)
    for name in ("target_fingerprint", "draft_fingerprint", "draft_length", "num_feature_layers"):
        wanted, given = getattr(card, name), getattr(evaluation.meta, name)
        if given != wanted:
            raise HradError(f"{name} of the evaluation data is {given}, but the predictor has {wanted}; collect again.")


def check_prompts_apart(card: PredictorCard, prompt_keys: Sequence[str]) -> None:
    """Raise HradError where a predictor would be judged on a prompt that it was trained on."""
    if shared := set(card.prompt_keys) & set(prompt_keys):
        raise HradError(
            f"{len(shared)} of {len(prompt_keys)} evaluation prompts were trained on; choose others, for example with "
            "--skip-prompts."
        )


def quality(rule: Rule, data: Dataset, constant: Probs, *, seed: int = 0) -> Quality:
    """Scores of one rule; constant: the baseline's probabilities on the same rows."""
    probs, labels = rule.predict(data), data.labels
    losses = _losses(probs, labels)
    gains = _losses(constant, labels) - losses
    is_reject, is_accept = labels == REJECT, labels == ACCEPT
    rows_of = [np.flatnonzero(data.prompts == prompt) for prompt in np.unique(data.prompts)]
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(NUM_RESAMPLES):
        rows = np.concatenate([rows_of[index] for index in rng.integers(len(rows_of), size=len(rows_of))])
        resampled.append(
            (
                gains[rows].mean(),
                area_under_curve(probs[rows, REJECT], is_reject[rows]),
                area_under_curve(probs[rows, ACCEPT], is_accept[rows]),
            )
        )
    low, high = np.nanpercentile(np.asarray(resampled), [2.5, 97.5], axis=0)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    chosen = probs.argmax(1)
    confusion = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    np.add.at(confusion, (labels, chosen), 1)
    recalls = [row[index] / row.sum() for index, row in enumerate(confusion) if row.sum()]
    return Quality(
        name=rule.name,
        sees=rule.sees,
        log_loss=float(losses.mean()),
        gain=float(gains.mean()),
        gain_interval=intervals[0],
        accuracy=float((chosen == labels).mean()),
        balanced_accuracy=float(np.mean(recalls)),
        calibration_error=expected_calibration_error(probs, labels),
        auc_reject=area_under_curve(probs[:, REJECT], is_reject),
        auc_reject_interval=intervals[1],
        auc_accept=area_under_curve(probs[:, ACCEPT], is_accept),
        auc_accept_interval=intervals[2],
        confusion=confusion.tolist(),
    )


def expected_calibration_error(probs: Probs, labels: Labels) -> float:
    """Mean distance between predicted chance and observed share, over classes and bins of equal count, by count.

    Over all three classes rather than the likeliest alone, for policies read each of them.
    """
    bins = [item for index in range(len(CLASS_NAMES)) for item in _bins(probs[:, index], labels == index, "")]
    distance = sum(abs(item.mean_predicted - item.observed) * item.num for item in bins)
    return distance / sum(item.num for item in bins)


def reliability(probs: Probs, labels: Labels) -> list[ReliabilityBin]:
    """Predicted against observed, for the two classes that policies act on."""
    return [item for index in (REJECT, ACCEPT) for item in _bins(probs[:, index], labels == index, CLASS_NAMES[index])]


@torch.inference_mode()
def measure_cost(predictor: Predictor, engine: Engine, *, num_repeats: int = 200) -> Cost:
    """Time predictions beside the verifications that they follow. engine: the target, with or without features.

    Raises HradError for a target of another shape.
    """
    predictor.check_engine(engine)
    device = engine.device
    context = min(COST_CONTEXT, engine.capacity - predictor.card.draft_length - 1)
    pending = [1] * (predictor.card.draft_length + 1)
    features = torch.randn(1, predictor.card.num_feature_layers, predictor.card.hidden_size, device=device)
    engine.reset()
    engine.extend([1] * context, last_only=True)
    predict_times, verify_times = [], []
    meter = ContentionMeter([])
    for _ in range(num_repeats):
        start = time.perf_counter()
        engine.extend(pending).argmax(-1).tolist()  # reading the tokens waits for the device
        middle = time.perf_counter()
        predictor(features, engine.embed([1]))[0].tolist()
        end = time.perf_counter()
        engine.roll_back(context)
        verify_times.append(middle - start)
        predict_times.append(end - middle)
    is_clean = meter.lap().is_clean
    return Cost(predict_s=float(np.median(predict_times)), verify_s=float(np.median(verify_times)), is_clean=is_clean)


def _losses(probs: Probs, labels: Labels) -> Probs:
    losses: Probs = -np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-12))
    return losses


def _bins(chances: Probs, happened: NDArray[np.bool_], name: str) -> Sequence[ReliabilityBin]:
    order = np.argsort(chances, kind="stable")
    return [
        ReliabilityBin(
            class_name=name,
            mean_predicted=float(chances[rows].mean()),
            observed=float(happened[rows].mean()),
            num=len(rows),
        )
        for rows in np.array_split(order, NUM_BINS)
        if len(rows)
    ]
