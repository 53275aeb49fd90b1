"""What H-RAD sees: the target's last blocks at the last verified position, and the embedding of the newest token.

After a verdict the committed sequence ends with a token y that the target has not forwarded yet. The hidden states are
those at the token before y, the embedding is that of y, so a prediction needs no forward of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from executor.models.engines.base import Engine

_CHUNK = 64  # positions of one forward along a finished sequence
_NORM_FLOOR = 1e-6


def class_inputs(features: Tensor, embeddings: Tensor) -> Tensor:
    """z = each block's output divided by its root mean square, then the embedding: (n, K * hidden + embedding).

    features: (n, K, hidden), outputs of the last K blocks before the final norm, so that all are on one scale (the
    official code mixes in the last layer after the norm). embeddings: (n, embedding), rows of the target's input table.
    """
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    normed = features * (features.shape[-1] ** 0.5 / (norm + _NORM_FLOOR))
    return torch.cat([normed.flatten(1), embeddings], dim=1)


def first_features(engine: Engine, num_prompt: int) -> Tensor:
    """Features at the token before the prompt's last one, (1, K, hidden), after the prefill; zeros if there is none."""
    if num_prompt > 1:
        return engine.features[-1:]
    return torch.zeros(1, engine.num_feature_layers, engine.hidden_size, device=engine.device)


def class_inputs_along(engine: Engine, tokens: Sequence[int], num_prompt: int) -> Iterator[Tensor]:
    """Inputs before each of the positions 0..N of a finished sequence, in chunks of rows, by one pass of the target.

    tokens: the prompt's num_prompt tokens and N generated ones. The engine's cache is overwritten.
    """
    engine.reset()
    if num_prompt > 1:
        engine.extend(tokens[: num_prompt - 1], last_only=True)
    yield class_inputs(first_features(engine, num_prompt), engine.embed([tokens[num_prompt - 1]]))
    inputs = tokens[num_prompt - 1 : -1]  # the target never forwards the newest token
    for first in range(0, len(inputs), _CHUNK):
        chunk = inputs[first : first + _CHUNK]
        engine.extend(chunk, last_only=True)
        newest = tokens[num_prompt + first : num_prompt + first + len(chunk)]
        yield class_inputs(engine.features, engine.embed(newest))
