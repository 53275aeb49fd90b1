"""The folder of a distilled draft: few blocks and a head over few tokens, int8, beside the config; no embedding table.

Such a draft reads the embedding table of the target that it was made for, and has that target's tokenizer: neither is stored.
Each matrix is stored as int8 rows with one float32 scale a row, value = scale * row; norms are float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from executor.models.sources.base import ModelError
from traces.files import whole_file, write_text

CARD_FILE, WEIGHTS_FILE, CONFIG_FILE = "draft.json", "model.safetensors", "config.json"
HEAD_TOKENS, EMBEDDING = "head_tokens", "model.embed_tokens.weight"
_SCALE = ".scale"
_FILE_MODE = 0o644


@dataclass(frozen=True, kw_only=True)
class DraftCard:
    """What a distilled draft was made for and how.

    target: name or folder of the target. target_fingerprint: of its weights as the draft was trained on. vocabulary: sha256
    of the tokenizer's map from tokens to ids. training: facts for the reader, such as the number of tokens seen.
    """

    target: str
    target_fingerprint: str
    vocabulary: str
    training: Mapping[str, str | int | float] = field(default_factory=dict)


_CARD = TypeAdapter(DraftCard)


def is_distilled(path: str | Path) -> bool:
    """Whether a name means the folder of a distilled draft."""
    return (Path(path) / CARD_FILE).is_file()


def read_draft_card(folder: Path) -> DraftCard:
    """The card of a folder. Raises `ModelError` for one that cannot be read."""
    try:
        return _CARD.validate_json((folder / CARD_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"{folder / CARD_FILE} cannot be read ({str(error).splitlines()[0]}): train it again."
        ) from error


def vocabulary_digest(tokens: Mapping[str, int]) -> str:
    """sha256 of a map from tokens to ids, whatever its order."""
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()


def empty_draft(target_config: Any, *, num_layers: int, num_head_tokens: int) -> Any:
    """A module of the target's family with num_layers blocks and a head of its own; its embedding table is yet to be given.

    Weights are what the family's initialiser draws; the table is empty (0, hidden). Raises ValueError for a target with fewer
    blocks.
    """
    if not 1 <= num_layers <= target_config.num_hidden_layers:
        raise ValueError(
            f"a draft of {num_layers} blocks cannot be made of a target of {target_config.num_hidden_layers}."
        )
    config = deepcopy(target_config)
    config.num_hidden_layers, config.tie_word_embeddings = num_layers, False
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    # The family's own table and head would only be thrown away: they are made for one token.
    vocab_size, padding = config.vocab_size, config.pad_token_id
    config.vocab_size, config.pad_token_id = 1, None
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    module.config.vocab_size, module.config.pad_token_id = vocab_size, padding
    module.lm_head = nn.Linear(config.hidden_size, num_head_tokens, bias=False)
    module.model.embed_tokens = nn.Embedding(0, config.hidden_size)
    return module


def give_table(module: Any, table: Tensor) -> None:
    """Let a draft read an embedding table, (vocab, hidden), which is shared, not copied, and never trained."""
    embedding = nn.Embedding(0, table.shape[1])
    embedding.weight = nn.Parameter(table, requires_grad=False)
    embedding.num_embeddings = len(table)
    module.model.embed_tokens = embedding


def write_draft(module: Any, head_tokens: Tensor, card: DraftCard, folder: Path) -> None:
    """Write a draft; each file is replaced at once, the card last, so that a folder with a card is whole."""
    stored: dict[str, Tensor] = {HEAD_TOKENS: head_tokens.to(torch.int32)}
    for name, value in module.state_dict().items():
        if name == EMBEDDING:
            continue
        value = value.detach().float().cpu()
        if value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True).clamp_(min=1e-12) / 127
            stored[name], stored[name + _SCALE] = (value / scale).round().to(torch.int8), scale
        else:
            stored[name] = value.contiguous()
    config = {**module.config.to_dict(), "dtype": "float32"}
    with whole_file(folder / WEIGHTS_FILE) as place:
        save_file(stored, place)
        place.chmod(_FILE_MODE)  # safetensors writes for the owner alone
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_text(folder / CARD_FILE, _CARD.dump_json(card, indent=2).decode() + "\n")


def read_draft(folder: Path, table: Tensor) -> tuple[Any, Tensor]:
    """A draft in float32 over the embedding table of its target, and the ids of its head's tokens, (columns,) int64.

    Raises `ModelError` where files are missing or damaged, or the table is of another shape than the draft needs.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        stored = load_file(folder / WEIGHTS_FILE)
        head_tokens = stored.pop(HEAD_TOKENS).long()
        module = empty_draft(config, num_layers=config.num_hidden_layers, num_head_tokens=len(head_tokens))
        weights = {
            name: value.float() * stored[name + _SCALE] if value.dtype == torch.int8 else value
            for name, value in stored.items()
            if not name.endswith(_SCALE)
        }
        module.load_state_dict({**weights, EMBEDDING: torch.empty(0, config.hidden_size)})
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"the draft in {folder} cannot be read ({str(error).splitlines()[0]}): train it again."
        ) from error
    if table.shape[1] != config.hidden_size or len(table) < config.vocab_size:
        raise ModelError(
            f"the draft in {folder} reads the embedding table of {read_draft_card(folder).target}, of shape "
            f"{config.vocab_size} x {config.hidden_size}, but this one is {len(table)} x {table.shape[1]}: choose that target."
        )
    give_table(module, table)
    return module.eval(), head_tokens
