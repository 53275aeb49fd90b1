"""Distil drafts from a frozen target, on the corpus and on text of the target's own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForCausalLM

from executor.embedded_pair.corpus import training_prompts
from executor.embedded_pair.sampling import generate
from executor.embedded_pair.settings import TrainingSettings
from executor.embedded_pair.shapes import build_model, load_model, num_parameters, save_model
from executor.embedded_pair.streams import Corpus
from executor.embedded_pair.tokens import crop_batch
from executor.embedded_pair.training.data_parallel import Team
from executor.embedded_pair.training.optimisation import Clock, PairOptimiser

OWN_TEXT_SHARE = 0.5  # of windows: drafts meet the target's text, not the corpus, when they are used
OWN_TEXT_TEMPERATURES = (1.0, 0.7, 0.0)


def write_own_text(target: LlamaForCausalLM, corpus: Corpus, settings: TrainingSettings) -> torch.Tensor:
    """What the target makes of training prompts, sampled at temperatures 1 and 0.7 and greedy: one token stream."""
    prompts = training_prompts(settings.num_own_texts, seed=settings.seed, root=settings.library)
    ids = [corpus.tokenizer.encode(prompt.text).ids for prompt in prompts]
    stream: list[int] = []
    for index, start in enumerate(range(0, len(ids), settings.own_text_batch)):
        batch = ids[start : start + settings.own_text_batch]
        temperature = OWN_TEXT_TEMPERATURES[index % len(OWN_TEXT_TEMPERATURES)]
        continuations = generate(
            target, batch, num_new_tokens=settings.num_own_tokens, temperature=temperature, seed=settings.seed + index
        )
        for prompt, new in zip(batch, continuations, strict=True):
            stream += prompt + new
        print(f"own text: {len(stream):,} tokens from {start + len(batch)}/{len(ids)} prompts", flush=True)
    return torch.tensor(stream, dtype=torch.long)


def distillation_loss(target_logits: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
    """Mean Kullback-Leibler divergence of the draft from the target, nats per position, over the full vocabulary.

    Forward, KL(target || draft) (Hinton et al. 2015, arXiv:1503.02531, at temperature 1).
    target_logits, draft_logits: (..., vocab).
    """
    target_log_probs = torch.log_softmax(target_logits.float(), dim=-1)
    draft_log_probs = torch.log_softmax(draft_logits.float(), dim=-1)
    return (target_log_probs.exp() * (target_log_probs - draft_log_probs)).sum(dim=-1).mean()


def overlap(target_logits: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
    """Sum over the vocabulary of min(target, draft) probability: the best acceptance of any rule. Returns (...)."""
    return torch.minimum(target_logits.softmax(dim=-1), draft_logits.softmax(dim=-1)).sum(dim=-1)


@torch.no_grad()
def mean_overlap(target: LlamaForCausalLM, draft: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Mean overlap over windows (num, length), at temperature 1."""
    values = [
        overlap(target(input_ids=chunk, use_cache=False).logits, draft(input_ids=chunk, use_cache=False).logits).mean()
        for chunk in torch.split(windows, 8)
    ]
    return float(torch.stack(values).mean())


def distil_drafts(
    team: Team, settings: TrainingSettings, corpus: Corpus, own_text: torch.Tensor, output_dir: Path
) -> None:
    """One process's part of training every draft on the same batches, so that the target runs once for all of them."""
    plan, device = settings.distillation, settings.device
    target = load_model(output_dir / settings.target_name, device).eval().requires_grad_(False)
    drafts = nn.ModuleDict(
        {
            name: build_model(shape, vocab_size=settings.vocab_size, max_length=settings.max_length, seed=settings.seed)
            for name, shape in settings.draft_shapes.items()
        }
    ).to(device)

    def target_logits(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=settings.use_bfloat16):
            logits: torch.Tensor = target(input_ids=inputs, use_cache=False).logits
        return logits

    def total_loss(inputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=settings.use_bfloat16):
            logits = [draft(input_ids=inputs, use_cache=False).logits for draft in drafts.values()]
        return torch.stack([distillation_loss(teacher, own) for own in logits])

    learn = torch.compile(total_loss, dynamic=False) if settings.use_compile else total_loss
    optimisers = [PairOptimiser(draft, plan, team) for draft in drafts.values()]
    generator = torch.Generator().manual_seed(settings.seed * team.num_processes + team.rank)
    streams = [*corpus.training, own_text]
    shares = [share * (1 - OWN_TEXT_SHARE) for share in corpus.shares] + [OWN_TEXT_SHARE]
    windows = corpus.evaluation_windows(settings.num_evaluation_windows, plan.sequence_length).to(device)
    clock, step, num_tokens = Clock(plan), 0, 0
    while (progress := team.agree(clock.progress(step))) < 1:
        batch_size, length = plan.batch_size, plan.sequence_length
        batch = crop_batch(streams, shares, (max(1, batch_size // team.num_processes), length), generator).to(device)
        with torch.no_grad():
            teacher = target_logits(batch)
        losses = learn(batch, teacher)
        torch.autograd.backward(losses.sum())
        for optimiser in optimisers:
            optimiser.step(step, progress)
        step, num_tokens = step + 1, num_tokens + batch_size * length
        if team.rank == 0 and step % settings.report_every == 0:
            overlaps = " ".join(f"{mean_overlap(target, draft, windows):.3f}" for draft in _models(drafts).values())
            print(
                f"drafts step {step}/{plan.num_steps} tokens {num_tokens / 1e6:.2f}M "
                f"KL {' '.join(f'{value:.3f}' for value in losses.tolist())} held-out overlap {overlaps} "
                f"elapsed {clock.elapsed_s():.0f} s left {clock.remaining_s(step):.0f} s",
                flush=True,
            )
        if team.rank == 0 and step % settings.save_every == 0:
            _save_all(drafts, corpus, output_dir)
    if team.rank == 0:
        _save_all(drafts, corpus, output_dir)
        sizes = ", ".join(f"{name} {num_parameters(model):,}" for name, model in _models(drafts).items())
        print(f"drafts done: {sizes} parameters, {step} steps, {num_tokens:,} tokens, {clock.elapsed_s():.0f} s")


def _models(drafts: nn.ModuleDict) -> Mapping[str, LlamaForCausalLM]:
    models = {name: model for name, model in drafts.items() if isinstance(model, LlamaForCausalLM)}
    assert len(models) == len(drafts), "every draft is a Llama model"
    return models


def _save_all(drafts: nn.ModuleDict, corpus: Corpus, output_dir: Path) -> None:
    for name, model in _models(drafts).items():
        save_model(model, corpus.tokenizer, output_dir / name)
