"""How many of the target's blocks H-RAD should look at, and at which draft lengths it knows more than the draft: a predictor
for each, trained and judged on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from executor.hrad.baselines import Rule, fit_baselines, predict
from executor.hrad.dataset import Dataset, with_draft_length, with_last_layers
from executor.hrad.evaluation import Quality, check_apart, evaluate, quality
from executor.hrad.predictor import HradError, Predictor
from executor.hrad.training import TrainingSettings, train
from traces.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """num_feature_layers: K of arXiv:2506.01979. feature_bytes: of one position, float32, as the target's process keeps it."""

    num_feature_layers: int
    num_parameters: int
    feature_bytes: int
    quality: Quality


@dataclass(frozen=True, kw_only=True)
class LengthResult:
    """Gains over the constant at one draft length, in nats a position, with 95% intervals by resampling prompts: of the noisy
    margin of the first draft token, of H-RAD alone, and of both together."""

    draft_length: int
    margin: Quality
    hrad: Quality
    both: Quality

    @property
    def added(self) -> float:
        """What H-RAD adds to the draft's own signals: the gain of both less that of the noisy margin, nats a position."""
        return self.both.gain - self.margin.gain


def ablate_lengths(
    training: Dataset,
    evaluation: Dataset,
    lengths: Sequence[int],
    settings: TrainingSettings,
    *,
    progress: Report = silent,
) -> list[LengthResult]:
    """A result for each draft length, in the order given; one at which too little is known is left out, with a warning.

    Both data sets must hold at least the largest one.
    """
    cut = [(with_draft_length(training, length), with_draft_length(evaluation, length)) for length in lengths]
    results = []
    for index, (part, judged) in enumerate(cut):
        progress(index + 1, len(lengths))
        try:
            trained = train(part, settings)
        except HradError as error:
            warnings.warn(f"draft length {lengths[index]} is left out: {error}", stacklevel=2)
            continue
        found = evaluate(Predictor(trained.card, trained.network), part, judged, seed=settings.seed)
        by_name = {rule.name: rule for rule in found.rules}
        results.append(
            LengthResult(
                draft_length=lengths[index],
                margin=by_name["noisy margin"],
                hrad=by_name["H-RAD"],
                both=by_name["H-RAD + first token"],
            )
        )
    return results


def ablate_layers(
    training: Dataset,
    evaluation: Dataset,
    layers: Sequence[int],
    settings: TrainingSettings,
    *,
    progress: Report = silent,
) -> list[LayerResult]:
    """A result for each K, in the order given. Both data sets must hold at least the largest K."""
    cut = [(with_last_layers(training, count), with_last_layers(evaluation, count)) for count in layers]
    constant = fit_baselines(training)[0]
    results = []
    for index, (part, judged) in enumerate(cut):
        trained = train(part, settings)
        predictor = Predictor(trained.card, trained.network)
        check_apart(predictor, part, judged)
        rule = Rule(f"H-RAD, K = {layers[index]}", "target features", partial(predict, predictor))
        results.append(
            LayerResult(
                num_feature_layers=layers[index],
                num_parameters=sum(parameter.numel() for parameter in trained.network.parameters()),
                feature_bytes=4 * layers[index] * part.meta.hidden_size,
                quality=quality(rule, judged, constant.predict(judged), seed=settings.seed),
            )
        )
        progress(index + 1, len(layers))
    return results
