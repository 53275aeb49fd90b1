"""Batched generation with the pair's models, by the Gumbel-max rule: text to distil on, and text to measure."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from executor.embedded_pair.tokens import EOS_ID
from executor.models.engines.hugging_face import cache_argument


def position_noise(seed: int, position: int, shape: tuple[int, int]) -> torch.Tensor:
    """Gumbel noise of one position, a function of its arguments alone, so that two models can share it.

    shape: (batch, vocab). Returns float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
    return -torch.empty(shape).exponential_(generator=generator).log()


def noisy_scores(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """Scores whose argmax is a sample at `temperature` (Gumbel-max), or the likeliest token at temperature 0.

    Shared between target and draft, the noise makes both choose the same token often (Daliri et al. 2024,
    arXiv:2408.07978). logits, noise: (..., vocab). Returns log-probabilities plus noise; without noise at 0.
    """
    if temperature == 0:
        return torch.log_softmax(logits, dim=-1)
    return torch.log_softmax(logits / temperature, dim=-1) + noise


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], *, num_new_tokens: int, temperature: float, seed: int
) -> list[list[int]]:
    """Continue every prompt until its first `</s>` (kept) or `num_new_tokens`; greedy at temperature 0.

    New token i of all prompts is chosen with position_noise(seed, i, (batch, vocab)). Prompts are padded on the left,
    so they may differ in length. Returns the new tokens of each prompt.
    """
    longest = max(len(prompt) for prompt in prompts)
    padded = torch.full((len(prompts), longest), EOS_ID)
    mask = torch.zeros((len(prompts), longest + num_new_tokens), dtype=torch.long)
    mask[:, longest:] = 1
    for row, prompt in enumerate(prompts):
        padded[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) : longest] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0).to(model.device)
    inputs, mask = padded.to(model.device), mask.to(model.device)
    kept: Any = {cache_argument(model): DynamicCache(config=model.config)}
    columns: list[torch.Tensor] = []
    has_ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    start = 0
    for index in range(num_new_tokens):
        end = longest + index
        logits = model(
            input_ids=inputs,
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            use_cache=True,
            logits_to_keep=1,
            **kept,
        ).logits[:, -1]
        noise = position_noise(seed, index, (len(prompts), logits.shape[-1])).to(model.device)
        tokens = noisy_scores(logits.float(), noise, temperature).argmax(dim=-1)
        columns.append(tokens.cpu())
        has_ended |= tokens == EOS_ID
        if bool(has_ended.all()):
            break
        inputs, start = tokens[:, None], end
    return [_until_end(row) for row in torch.stack(columns, dim=1).tolist()]


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS_ID) + 1] if EOS_ID in tokens else tokens


def ends_in_loop(tokens: Sequence[int], window: int = 24) -> bool:
    """Whether the last `window` tokens already occurred, in this order, earlier in the generation.

    >>> ends_in_loop([1, 2, 3, 1, 2, 3], window=3), ends_in_loop([1, 2, 3, 1, 2, 4], window=3)
    (True, False)
    """
    tail = list(tokens[-window:])
    return len(tokens) > window and any(
        list(tokens[start : start + window]) == tail for start in range(len(tokens) - window)
    )


def repeated_positions(tokens: Sequence[int], size: int) -> list[bool]:
    """For each token, whether it completes an n-gram of `size` tokens that occurred before.

    >>> repeated_positions([1, 2, 3, 1, 2, 3], size=2)
    [False, False, False, False, True, True]
    """
    seen: set[tuple[int, ...]] = set()
    repeated = []
    for end in range(1, len(tokens) + 1):
        ngram = tuple(tokens[max(0, end - size) : end])
        repeated.append(len(ngram) == size and ngram in seen)
        seen.add(ngram)
    return repeated
