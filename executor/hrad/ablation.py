"""How many of the target's blocks H-RAD should look at: a predictor for each K, trained and judged on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from executor.hrad.baselines import Rule, fit_baselines, predict
from executor.hrad.dataset import Dataset, with_last_layers
from executor.hrad.evaluation import Quality, check_apart, quality
from executor.hrad.predictor import Predictor
from executor.hrad.training import TrainingSettings, train
from traces.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """num_feature_layers: K of arXiv:2506.01979. feature_bytes: of one position, float32, as the target's process keeps it."""

    num_feature_layers: int
    num_parameters: int
    feature_bytes: int
    quality: Quality


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
