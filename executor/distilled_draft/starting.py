"""What a distilled draft starts from: some of the target's own blocks, its last norm, and its head's rows of chosen tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from executor.distilled_draft.corpus import Batch, added_mask
from executor.models.stored.distilled import empty_draft, give_table

_RIDGE = 1e-4  # of the mean square of a state's numbers


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


@torch.no_grad()
def fit_head(target: Any, draft: Any, batches: Iterable[Batch], head_tokens: Tensor) -> None:
    """Let the draft's head speak for the states that the draft has, which are not those that the target's head was made for.

    The target's last states y are fitted by the draft's x, each after its final norm, as y = W x in least squares with a small
    ridge; the head's rows become the target's times W. Blocks that follow others than they were trained behind give states of
    another scale: without this the first few hundred steps of training go into repairing it.
    """
    width, device = target.config.hidden_size, head_tokens.device
    squares, crossed = (torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2))
    for batch in batches:
        is_used = batch.weights > 0
        own, wanted = (last_states(module, batch)[is_used].double() for module in (draft, target))
        squares += own.T @ own
        crossed += own.T @ wanted
    ridge = _RIDGE * squares.diagonal().mean() * torch.eye(width, dtype=torch.float64, device=device)
    weights = torch.linalg.solve(squares + ridge, crossed).float()  # (own, wanted)
    draft.lm_head.weight.copy_(target.get_output_embeddings().weight[head_tokens] @ weights.T)


def last_states(module: Any, batch: Batch) -> Tensor:
    """What the head reads, (streams, length, hidden)."""
    inputs = module.model.embed_tokens(batch.tokens)
    states: Tensor = module.model(
        inputs_embeds=inputs, position_ids=batch.positions, attention_mask=added_mask(batch.starts), use_cache=False
    ).last_hidden_state
    return states
