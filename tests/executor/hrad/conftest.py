"""The pair and its predictor, made once for each file."""

from __future__ import annotations

import pytest

from executor.embedded_pair.shapes import Shape, build_model, save_model
from executor.embedded_pair.tokens import train_tokenizer
from executor.hrad.predictor import PredictorCard, save_predictor
from executor.models.loading import fingerprint
from tests.executor.hrad.small_pair import random_network


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
    network = random_network(card, sharpness=4.0)
    save_predictor(folder, card, network)
    return str(folder)
