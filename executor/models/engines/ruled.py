"""Rules of a model's generation_config that depend on the sequence alone, applied to every row of logits an engine gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from executor.models.engines.base import Engine, widened

APPLIED = (  # in the order in which transformers' generate applies them
    "sequence_bias",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "suppress_tokens",
)
NOT_APPLIED = (  # they depend on where the prompt ends, on other sequences, on a second forward, or on time
    "min_new_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "guidance_scale",
    "watermarking_config",
    "penalty_alpha",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "constraints",
    "force_words_ids",
    "dola_layers",
    "token_healing",
    "stop_strings",
    "max_time",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
_FACTORS = (  # which change nothing where they are 1, and are wrong where they are 0
    "repetition_penalty",
    "encoder_repetition_penalty",
    "guidance_scale",
    "typical_p",
    "num_beams",
    "num_beam_groups",
)


def rules_of(config: GenerationConfig, eos_ids: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """The processors of a generation config that depend on the sequence alone, transformers' own; may be empty.

    Raises ValueError or TypeError for a value that they cannot take.
    """
    given: dict[str, Any] = {name: getattr(config, name) for name in asked_of(config)}
    ends: Any = torch.tensor(list(eos_ids), device=device) if eos_ids else None
    rules = LogitsProcessorList()
    for name, value in given.items():
        if name == "sequence_bias":
            if not all(math.isfinite(bias) for _, bias in value):
                raise ValueError(f"a bias that is no finite number, among {value!s:.60}")
            rules.append(logits_process.SequenceBiasLogitsProcessor(value))
        elif name == "repetition_penalty":
            if not math.isfinite(value):
                raise ValueError(f"a penalty of {value}")
            rules.append(logits_process.RepetitionPenaltyLogitsProcessor(float(value)))
        elif name == "no_repeat_ngram_size":
            rules.append(logits_process.NoRepeatNGramLogitsProcessor(value))
        elif name == "bad_words_ids":
            rules.append(logits_process.NoBadWordsLogitsProcessor(value, ends))
        elif name == "min_length" and eos_ids:
            rules.append(logits_process.MinLengthLogitsProcessor(value, ends, str(device)))
        elif name == "suppress_tokens":
            rules.append(logits_process.SuppressTokensLogitsProcessor(value, str(device)))
    return rules


def asked_of(config: GenerationConfig) -> list[str]:
    """Rules that a generation config asks for, of those that are applied."""
    return [name for name in APPLIED if _is_set(name, getattr(config, name, None))]


def warn_of_ignored(name: str, config: GenerationConfig) -> None:
    """Name what a generation config asks for and we do not do, so that nobody takes our tokens for the model's usual ones."""
    if ignored := [key for key in NOT_APPLIED if _is_set(key, getattr(config, key, None))]:
        settings = ", ".join(f"{key}={getattr(config, key)}" for key in ignored)
        warnings.warn(
            f"the generation_config of {name} asks for {settings}, which is not applied: tokens differ from those of its "
            "usual generate. Ask for plain decoding with --ignore-generation-config, and this is not said.",
            stacklevel=2,
        )


def _is_set(name: str, value: object) -> bool:
    """Whether a setting asks for something: a token may have the id 0 or 1, and a factor of 1 asks for nothing."""
    if name in _FACTORS:
        return value is not None and value != 1
    return value is not None if name.endswith("token_id") else value not in (None, False, 0, [], {})


class RuledEngine:
    """An engine whose logits follow rules: each row is changed by what its own sequence holds.

    It keeps the token ids of the line and of the branches; everything else is the inner engine's. Rules count in ids of the
    vocabulary, so a head of fewer tokens is widened to it, with -inf for the others.
    """

    head_tokens: Tensor | None = None

    def __init__(self, engine: Engine, rules: LogitsProcessorList) -> None:
        self._engine, self._rules = engine, rules
        self.vocab_size, self.hidden_size, self.num_layers = engine.vocab_size, engine.hidden_size, engine.num_layers
        self.capacity, self.device, self.dtype = engine.capacity, engine.device, engine.dtype
        self.layouts: dict[str, str] = getattr(engine, "layouts", {})
        self._line: list[int] = []
        self._rows: list[list[int]] = []
        self._starts: tuple[int, ...] = ()

    @property
    def num_feature_layers(self) -> int:
        """Last blocks whose hidden states are kept."""
        return self._engine.num_feature_layers

    @num_feature_layers.setter
    def num_feature_layers(self, value: int) -> None:
        self._engine.num_feature_layers = value

    @property
    def features(self) -> Tensor:
        """Of the last `extend`."""
        return self._engine.features

    @features.setter
    def features(self, value: Tensor) -> None:
        self._engine.features = value

    @property
    def length(self) -> int:
        """Tokens in the line."""
        return self._engine.length

    def reset(self) -> None:
        """Forget everything: a new request."""
        self._engine.reset()
        self._line, self._rows = [], []

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Input embeddings of tokens."""
        return self._engine.embed(tokens)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line; close open branches."""
        logits = self._engine.extend(tokens, last_only=last_only)
        first = len(self._line) + len(tokens) - len(logits) + 1
        self._line += tokens
        return self._ruled(logits, [self._line[: first + row] for row in range(len(logits))])

    def roll_back(self, length: int) -> None:
        """Cut the line; close open branches."""
        self._engine.roll_back(length)
        del self._line[length:]

    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin one branch per entry."""
        self._engine.open_branches(starts)
        self._starts = tuple(starts)
        self._rows = [self._line[:start] for start in starts]

    @torch.inference_mode()
    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row."""
        logits = self._engine.grow(tokens)
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._ruled(logits, self._rows)

    def adopt(self, row: int, num_tokens: int) -> None:
        """Make the first num_tokens of one row's tail the line's next tokens."""
        self._engine.adopt(row, num_tokens)
        self._line = self._rows[row][: self._starts[row] + num_tokens]

    def _ruled(self, logits: Tensor, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(rows, vocab), each after its own sequence."""
        if self._engine.head_tokens is not None:
            logits = widened(logits, self._engine.head_tokens, self.vocab_size)
        rows = [
            self._rules(torch.tensor([sequence], device=self.device), logits[None, index])
            for index, sequence in enumerate(sequences)
        ]
        return torch.cat(rows)
