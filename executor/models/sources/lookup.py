"""Prompt lookup as the source of a draft: no weights, no files, and the vocabulary of the target beside it."""

from __future__ import annotations

import hashlib
from typing import Any

from executor.models.engines.base import Engine
from executor.models.engines.prompt_lookup import PromptLookupEngine
from executor.models.names import Lookup
from executor.models.settings import EngineSettings
from executor.models.sources.base import LARGEST_DEFAULT_CAPACITY, ModelError, resolve_device


class LookupSource:
    """A lookup that stands where a model does; name: as the user wrote it."""

    def __init__(self, name: str, lookup: Lookup) -> None:
        self._name, self._lookup = name, lookup

    def head_size(self) -> int:
        """It has none of its own."""
        raise self._only_a_draft()

    def num_layers(self) -> int:
        """It has none of its own."""
        raise self._only_a_draft()

    def tokenizer(self) -> Any:
        """It has none of its own."""
        raise self._only_a_draft()

    def eos_token_ids(self) -> tuple[int, ...]:
        """The target decides."""
        return ()

    def fingerprint(self) -> str:
        """Of its settings."""
        return hashlib.sha256(repr(self._lookup).encode()).hexdigest()

    def engine(self, settings: EngineSettings) -> Engine:
        """See `executor.models.engines.prompt_lookup`; needs the vocabulary's size."""
        if settings.vocab_size is None:
            raise self._only_a_draft()
        return PromptLookupEngine(
            self._lookup,
            vocab_size=settings.vocab_size,
            capacity=settings.capacity or LARGEST_DEFAULT_CAPACITY,
            device=resolve_device(settings.device),
        )

    def _only_a_draft(self) -> ModelError:
        return ModelError(f"{self._name} has no vocabulary of its own: it can only be a draft, beside a target.")
