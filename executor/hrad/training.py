"""Train a predictor: class-weighted cross-entropy, early stop on prompts held back, then probabilities made honest."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from executor.hrad.dataset import Dataset, Purpose
from executor.hrad.predictor import CLASS_NAMES, HradError, PredictorCard, make_network
from traces.progress import Report, silent

_MIN_SPREAD = 1e-3  # inputs that never vary are left as they are


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. arXiv:2506.01979 publishes epochs, batch and shape; the rest is our choice.

    held_back_share: of the prompts, for the early stop and the calibration. patience: epochs without progress.
    is_calibrated: whether the outputs are brought back to the classes' real frequencies; without it they stay those of
    balanced classes, so that the largest one names a rare class more often.
    """

    widths: tuple[int, int] = (256, 64)
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    num_epochs: int = 20
    batch_size: int = 32
    patience: int = 4
    held_back_share: float = 0.2
    is_calibrated: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_back_share < 1:
            raise HradError(f"held_back_share must lie between 0 and 1, but got {self.held_back_share}.")
        if min(self.num_epochs, self.batch_size, *self.widths) < 1:
            raise HradError("num_epochs, batch_size and both widths must be at least 1.")


@dataclass(frozen=True)
class Trained:
    """A network on raw inputs, its card, and the log-loss on held-back prompts after each epoch, in nats."""

    network: nn.Sequential
    card: PredictorCard
    history: tuple[float, ...]


def train(dataset: Dataset, settings: TrainingSettings | None = None, *, progress: Report = silent) -> Trained:
    """Train on a dataset of the pair; progress(epoch, num_epochs). Raises HradError for evaluation data, for data of one
    prompt, and where a class never occurs."""
    settings = settings or TrainingSettings()
    if dataset.meta.purpose is not Purpose.TRAINING:
        raise HradError("a predictor is never trained on evaluation data; give a folder that hrad collect wrote.")
    rng = np.random.default_rng(settings.seed)
    is_held_back = split_by_prompt(dataset.prompts, settings.held_back_share, rng)
    inputs = torch.from_numpy(dataset.inputs.astype(np.float32))
    labels = torch.from_numpy(dataset.labels)
    chosen = torch.from_numpy(is_held_back)
    fitted, held_back = (inputs[~chosen], labels[~chosen]), (inputs[chosen], labels[chosen])
    counts = torch.bincount(fitted[1], minlength=len(CLASS_NAMES))
    if not bool(counts.all()):
        absent = CLASS_NAMES[int(counts.argmin())]
        raise HradError(
            f"none of the {len(fitted[1])} training positions is of class {absent}; collect more prompts, or another "
            f"draft_length than {dataset.meta.draft_length}."
        )
    class_weights = counts.sum() / (len(CLASS_NAMES) * counts)

    mean, spread = fitted[0].mean(0), fitted[0].std(0, unbiased=False)
    spread = torch.where(spread < _MIN_SPREAD, 1.0, spread)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # initialisers and dropout take no generator
        network = make_network(inputs.shape[1], settings.widths, settings.dropout)
        history = _fit(
            network,
            ((fitted[0] - mean) / spread, fitted[1]),
            ((held_back[0] - mean) / spread, held_back[1]),
            class_weights,
            settings,
            progress,
        )
    network.eval()
    _take_raw_inputs(network, mean, spread)
    if settings.is_calibrated:
        _calibrate(network, held_back, class_weights.log())
    metrics = {**_metrics(network, held_back, counts), "best_epoch": float(np.argmin(history) + 1)}
    held_back_prompts = np.unique(dataset.prompts[is_held_back])
    return Trained(network, _card_of(dataset, settings, held_back_prompts, metrics), tuple(history))


def _metrics(network: nn.Sequential, held_back: tuple[Tensor, Tensor], counts: Tensor) -> dict[str, float]:
    """On held-back rows, beside a constant with the classes' frequencies. counts: of the classes in training."""
    with torch.no_grad():
        log_probs = network(held_back[0]).log_softmax(-1)
    constant = (counts / counts.sum()).log()[held_back[1]].mean()
    return {
        "log_loss": float(functional.nll_loss(log_probs, held_back[1])),
        "constant_log_loss": -float(constant),
        "accuracy": float((log_probs.argmax(-1) == held_back[1]).double().mean()),
        "num_held_back": float(len(held_back[1])),
    }


def _card_of(
    dataset: Dataset, settings: TrainingSettings, held_back_prompts: NDArray[np.int64], metrics: dict[str, float]
) -> PredictorCard:
    meta = dataset.meta
    return PredictorCard(
        target_fingerprint=meta.target_fingerprint,
        draft_fingerprint=meta.draft_fingerprint,
        draft_length=meta.draft_length,
        num_feature_layers=meta.num_feature_layers,
        hidden_size=meta.hidden_size,
        embedding_size=meta.embedding_size,
        widths=settings.widths,
        temperatures=meta.temperatures,
        num_positions=len(dataset),
        prompt_keys=meta.prompt_keys,
        held_back_keys=tuple(meta.prompt_keys[index] for index in held_back_prompts),
        is_calibrated=settings.is_calibrated,
        metrics=metrics,
    )


def split_by_prompt(prompts: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which rows are held back: all rows of a share of the prompts, never part of a prompt's."""
    known = np.unique(prompts)
    if len(known) < 2:
        raise HradError(f"{len(known)} prompts cannot be split into training and held-back ones; collect more.")
    num = min(max(1, round(share * len(known))), len(known) - 1)
    return np.isin(prompts, rng.permutation(known)[:num])


def _fit(
    network: nn.Sequential,
    fitted: tuple[Tensor, Tensor],
    held_back: tuple[Tensor, Tensor],
    class_weights: Tensor,
    settings: TrainingSettings,
    progress: Report,
) -> list[float]:
    """Epochs until the held-back log-loss stops falling; leaves the best weights in the network."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    inputs, labels = fitted
    log_weights = class_weights.log()
    best, best_state, history = math.inf, copy.deepcopy(network.state_dict()), []
    for epoch in range(settings.num_epochs):
        network.train()
        for rows in torch.randperm(len(labels)).split(settings.batch_size):  # type: ignore[no-untyped-call] # torch
            loss = functional.cross_entropy(network(inputs[rows]), labels[rows], weight=class_weights)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch
            optimiser.step()
        network.eval()
        with torch.no_grad():
            # Weighted training answers for balanced classes; minus log weight asks it about the real ones.
            loss_here = float(functional.cross_entropy(network(held_back[0]) - log_weights, held_back[1]))
        history.append(loss_here)
        progress(epoch + 1, settings.num_epochs)
        if loss_here < best:
            best, best_state = loss_here, copy.deepcopy(network.state_dict())
        elif epoch + 1 - (np.argmin(history) + 1) >= settings.patience:
            break
    network.load_state_dict(best_state)
    return history


def _take_raw_inputs(network: nn.Sequential, mean: Tensor, spread: Tensor) -> None:
    """Fold the standardisation of the inputs into the first layer: W (x - m) / s + b = (W / s) x + (b - W m / s)."""
    first = network[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.div_(spread)
        first.bias.sub_(first.weight @ mean)


def _calibrate(network: nn.Sequential, held_back: tuple[Tensor, Tensor], log_weights: Tensor) -> None:
    """Fold into the last layer: the classes' real frequencies, one temperature and one bias a class, fitted on
    held-back rows (temperature scaling of Guo et al. 2017, arXiv:1706.04599, with biases)."""
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        logits = network(held_back[0]) - log_weights
    log_scale, bias = torch.zeros(1, requires_grad=True), torch.zeros(len(CLASS_NAMES), requires_grad=True)
    optimiser = torch.optim.LBFGS([log_scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        # A weak pull of the biases to zero, for small held-back parts.
        loss = functional.cross_entropy(logits * log_scale.exp() + bias, held_back[1]) + 1e-3 * bias.square().sum()
        loss.backward()  # type: ignore[no-untyped-call] # torch
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call] # torch
    with torch.no_grad():
        scale = log_scale.exp()
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - log_weights) * scale + bias)
