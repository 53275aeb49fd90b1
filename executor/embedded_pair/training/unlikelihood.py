"""Teach the target not to loop: sequence-level unlikelihood (Welleck et al. 2019, arXiv:1908.04319, section 5)."""

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from executor.embedded_pair.sampling import ends_in_loop, generate, repeated_positions
from executor.embedded_pair.tokens import EOS_ID
from executor.embedded_pair.training.optimisation import Optimisation


@dataclass(frozen=True, kw_only=True)
class UnlikelihoodPlan:
    """When and how strongly repetition is punished.

    optimisation: its batches are ordinary text, mixed in at every step so that the model stays a model of text.
    num_prompts: greedy continuations a refresh; refresh_steps: steps between refreshes.
    num_new_tokens: length of a continuation. ngram: length of the repetition that is punished; code repeats short
    idioms by right, so this is longer than the 4 of the paper. weight: of the punishment against the text's loss.
    """

    optimisation: Optimisation
    num_prompts: int = 48
    refresh_steps: int = 15
    num_new_tokens: int = 192
    ngram: int = 8
    weight: float = 0.5


def unlikelihood_loss(logits: torch.Tensor, tokens: torch.Tensor, is_repeated: torch.Tensor) -> torch.Tensor:
    """Mean of -log(1 - p(token)) over the repeated tokens; 0 where nothing repeats.

    logits: (batch, length, vocab), of the positions that predict `tokens`. tokens, is_repeated: (batch, length).
    Welleck et al. 2019, equation 7, with the repeated tokens as negative candidates.
    """
    probs = torch.softmax(logits.float(), dim=-1).gather(-1, tokens[..., None])[..., 0]
    punished = -torch.log((1 - probs).clamp(min=1e-4)) * is_repeated
    return punished.sum() / is_repeated.sum().clamp(min=1)


@dataclass(frozen=True)
class Continuations:
    """Prompts with what a model made of them, padded on the right; is_repeated is False on prompts and padding."""

    tokens: torch.Tensor
    is_repeated: torch.Tensor
    loop_share: float

    @classmethod
    def none(cls) -> "Continuations":
        return cls(torch.zeros((0, 0), dtype=torch.long), torch.zeros((0, 0), dtype=torch.bool), 0.0)


def greedy_continuations(
    model: LlamaForCausalLM, prompts: list[list[int]], *, num_new_tokens: int, ngram: int
) -> Continuations:
    """Continue the prompts greedily, and mark the tokens that complete a repeated n-gram of the continuation."""
    generated = generate(model, prompts, num_new_tokens=num_new_tokens, temperature=0.0, seed=0)
    pairs = list(zip(prompts, generated, strict=True))
    longest = max(len(prompt) + len(new) for prompt, new in pairs)
    tokens = torch.full((len(pairs), longest), EOS_ID)
    is_repeated = torch.zeros((len(pairs), longest), dtype=torch.bool)
    for row, (prompt, new) in enumerate(pairs):
        end = len(prompt) + len(new)
        tokens[row, :end] = torch.tensor(prompt + new)
        is_repeated[row, len(prompt) : end] = torch.tensor(repeated_positions(new, ngram))
    return Continuations(tokens, is_repeated, sum(map(ends_in_loop, generated)) / len(generated))
