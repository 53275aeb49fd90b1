"""A distilled draft as a source: blocks and head from its own folder, embedding table and tokenizer from the target."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from executor.models.engines.base import Engine
from executor.models.engines.lifted import why_unsupported
from executor.models.engines.static import StaticEngine
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import LARGEST_DEFAULT_CAPACITY, ModelError, fitting, resolve_device, resolve_dtype
from executor.models.sources.hugging_face import HuggingFaceSource
from executor.models.stored.distilled import EMBEDDING, read_draft, read_draft_card, vocabulary_digest


class DistilledSource:
    """A folder that `executor.models.stored.distilled` wrote. It can only be a draft, beside the target it was made for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def head_size(self) -> int:
        """Of the vocabulary, which is the target's."""
        return int(self._config.vocab_size)

    def num_layers(self) -> int:
        """Of the config."""
        return int(self._config.num_hidden_layers)

    def tokenizer(self) -> Any:
        """It has none of its own."""
        raise ModelError(
            f"{self._folder} has no tokenizer of its own: it can only be a draft, beside "
            f"{read_draft_card(self._folder).target}."
        )

    def eos_token_ids(self) -> tuple[int, ...]:
        """The target decides."""
        return ()

    def fingerprint(self) -> str:
        """Over the config and the weights file."""
        return HuggingFaceSource(self._folder).fingerprint()

    def check_vocabulary(self, tokens: dict[str, int]) -> None:
        """Refuse a target whose tokenizer maps tokens to other ids. Raises `ModelError`."""
        card = read_draft_card(self._folder)
        if vocabulary_digest(tokens) != card.vocabulary:
            raise ModelError(
                f"the draft in {self._folder} was made for the vocabulary of {card.target}, and the target has another one: "
                "choose that target, or train a draft for this one."
            )

    def engine(self, settings: EngineSettings) -> Engine:
        """On the static engine; where the pair asks for hugging_face, with a warning. embedding_of names the target."""
        if settings.kind is EngineKind.RESIDENT:
            raise ModelError(f"the resident engine has no heads of few tokens yet, so {self._folder} cannot run on it.")
        if settings.kind is EngineKind.HUGGING_FACE:
            warnings.warn(f"{self._folder} runs on the static engine, not on hugging_face.", stacklevel=3)
        config = self._config
        capacity = settings.capacity or min(LARGEST_DEFAULT_CAPACITY, config.max_position_embeddings)
        if reason := why_unsupported(config, capacity):
            raise ModelError(f"the static engine cannot run {self._folder}: {reason}.")
        device = resolve_device(settings.device)
        with fitting(self._folder, capacity, device):
            module, head_tokens = read_draft(self._folder, embedding_table(settings.embedding_of))
            vocab_size = settings.vocab_size or int(config.vocab_size)
            return StaticEngine(
                module,
                capacity=capacity,
                device=device,
                dtype=resolve_dtype(settings.dtype),
                vocab_size=vocab_size,
                num_feature_layers=settings.num_feature_layers,
                head_tokens=head_tokens[head_tokens < vocab_size],
                layout=settings.layout,
            )

    @cached_property
    def _config(self) -> Any:
        return AutoConfig.from_pretrained(self._folder)


def embedding_table(target: str | Path) -> Tensor:
    """The embedding table of a target's folder or hub id, (vocab, hidden) float32. Raises `ModelError`.

    One tensor is read where the folder holds a single safetensors file that names it; otherwise the model is loaded.
    """
    if not target:
        raise ModelError("a distilled draft reads its target's embedding table: name the target (embedding_of).")
    file = Path(target) / "model.safetensors"
    if file.is_file():
        with safe_open(file, framework="pt") as weights:
            if EMBEDDING in weights.keys():  # noqa: SIM118 (not a dict)
                table: Tensor = weights.get_tensor(EMBEDDING)
                return table.float()
    try:
        module = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(f"the embedding table of {target} cannot be read ({str(error).splitlines()[0]}).") from error
    embedding: Tensor = module.get_input_embeddings().weight.detach()
    return embedding
