"""A random pair of a few blocks, an untrained predictor of it, and a request."""

from __future__ import annotations

from dataclasses import replace

import torch

from executor.hrad.predictor import PredictorCard, make_network
from executor.models.settings import PairSettings
from executor.request import Request
from tests.settings import pair_settings
from traces.schema import Sampling

PROMPT = tuple(range(40, 60))


def random_network(card: PredictorCard, sharpness: float = 1.0) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = make_network(card.num_inputs, card.widths, dropout=0.2).eval()
    for parameter in network.parameters():
        parameter.data.mul_(sharpness)
    return network


def short_request(temperature: float, **settings: object) -> Request:
    base = Request(prompt_id="p", tokens=PROMPT, max_new_tokens=40, sampling=Sampling(temperature), seed=3, noise_key=5)
    return replace(base, **settings)  # type: ignore[arg-type] # one test's own settings


def settings_of(names: tuple[str, str], **settings: object) -> PairSettings:
    return pair_settings(target=names[0], draft=names[1], **settings)
