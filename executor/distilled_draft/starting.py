"""What a distilled draft starts from: some of the target's own blocks, its last norm, and its head's rows of chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from executor.models.stored.distilled import empty_draft, give_table


def first_and_last(num_layers: int, of: int) -> tuple[int, ...]:
    """The first num_layers - 1 blocks and the last one: the first read the text, the last speaks the head's language.

    >>> first_and_last(3, of=30)
    (0, 1, 29)
    >>> first_and_last(1, of=30)
    (29,)
    """
    if not 1 <= num_layers <= of:
        raise ValueError(f"a draft of {num_layers} blocks cannot be made of a target of {of}.")
    return (*range(num_layers - 1), of - 1)


@torch.no_grad()
def start_draft(target: Any, *, blocks: Sequence[int], head_tokens: Tensor) -> Any:
    """A draft whose weights are copies of the target's, over the target's embedding table, which it shares.

    target: a Llama-type module of transformers. blocks: of the target, in the order in which the draft runs them.
    head_tokens: (columns,) ids, ascending.
    """
    draft = empty_draft(target.config, num_layers=len(blocks), num_head_tokens=len(head_tokens))
    for own, index in zip(draft.model.layers, blocks, strict=True):
        own.load_state_dict(target.model.layers[index].state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    draft.lm_head.weight.copy_(target.get_output_embeddings().weight[head_tokens])
    give_table(draft, target.get_input_embeddings().weight.detach())
    return draft
