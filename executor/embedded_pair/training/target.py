"""Train the target: on next tokens, then for a short while against its own loops."""

from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from executor.embedded_pair.corpus import training_prompts
from executor.embedded_pair.settings import TrainingSettings
from executor.embedded_pair.shapes import build_model, load_model, num_parameters, save_model
from executor.embedded_pair.streams import Corpus
from executor.embedded_pair.tokens import crop_batch
from executor.embedded_pair.training.data_parallel import Team
from executor.embedded_pair.training.optimisation import Clock, PairOptimiser
from executor.embedded_pair.training.unlikelihood import (
    Continuations,
    UnlikelihoodPlan,
    greedy_continuations,
    unlikelihood_loss,
)

CONTINUATIONS_PER_STEP = 16


def next_token_losses(model: LlamaForCausalLM, windows: torch.Tensor, *, use_bfloat16: bool) -> torch.Tensor:
    """Cross-entropy of each next token, nats. windows: (batch, length + 1); returns (batch, length), float32."""
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=use_bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return losses.view_as(windows[:, 1:])


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, corpus: Corpus, settings: TrainingSettings, length: int) -> float:
    """Mean cross-entropy over held-out windows of `length` predictions, nats per token."""
    windows = corpus.evaluation_windows(settings.num_evaluation_windows, length + 1).to(settings.device)
    losses = [
        next_token_losses(model, chunk, use_bfloat16=settings.use_bfloat16).mean() for chunk in torch.split(windows, 8)
    ]
    return float(torch.stack(losses).mean())


def train_target(team: Team, settings: TrainingSettings, corpus: Corpus, folder: Path) -> None:
    """One process's part of training the target on next tokens; saved to `folder`, now and then and at the end."""
    plan = settings.target
    model = build_model(
        settings.target_shape, vocab_size=settings.vocab_size, max_length=settings.max_length, seed=settings.seed
    ).to(settings.device)

    def mean_loss(windows: torch.Tensor) -> torch.Tensor:
        return next_token_losses(model, windows, use_bfloat16=settings.use_bfloat16).mean()

    compiled_loss = torch.compile(mean_loss, dynamic=False) if settings.use_compile else mean_loss
    optimiser = PairOptimiser(model, plan, team)
    generator = torch.Generator().manual_seed(settings.seed * team.num_processes + team.rank)
    clock, step, num_tokens = Clock(plan), 0, 0
    while (progress := team.agree(clock.progress(step))) < 1:
        batch_size, length = plan.batch_size, plan.sequence_length
        shape = (max(1, batch_size // team.num_processes), length + 1)
        windows = crop_batch(corpus.training, corpus.shares, shape, generator)
        loss = compiled_loss(windows.to(settings.device))
        torch.autograd.backward(loss)
        optimiser.step(step, progress)
        step, num_tokens = step + 1, num_tokens + batch_size * length
        if team.rank == 0 and step % settings.report_every == 0:
            evaluated = held_out_loss(model, corpus, settings, plan.sequence_length)
            print(
                f"target step {step}/{plan.num_steps} tokens {num_tokens / 1e6:.2f}M loss {loss.item():.3f} "
                f"held-out {evaluated:.3f} elapsed {clock.elapsed_s():.0f} s left {clock.remaining_s(step):.0f} s",
                flush=True,
            )
        if team.rank == 0 and step % settings.save_every == 0:
            save_model(model, corpus.tokenizer, folder)
    if team.rank == 0:
        save_model(model, corpus.tokenizer, folder)
        print(
            f"target done: {num_parameters(model):,} parameters, {step} steps, {num_tokens:,} tokens, "
            f"{clock.elapsed_s():.0f} s",
            flush=True,
        )


def train_against_loops(
    team: Team, settings: TrainingSettings, plan: UnlikelihoodPlan, corpus: Corpus, folder: Path
) -> None:
    """One process's part of the unlikelihood stage, on the target in `folder`, which it replaces at the end."""
    model = load_model(folder, settings.device)
    optimiser, clock = PairOptimiser(model, plan.optimisation, team), Clock(plan.optimisation)
    generator = torch.Generator().manual_seed(settings.seed * team.num_processes + team.rank)
    num_prompts = plan.num_prompts * (1 + plan.optimisation.num_steps // plan.refresh_steps)
    prompts = training_prompts(num_prompts, seed=settings.seed + 1, root=settings.library)
    ids = [corpus.tokenizer.encode(prompt.text).ids for prompt in prompts]
    step, continuations = 0, Continuations.none()
    while (progress := team.agree(clock.progress(step))) < 1:
        if step % plan.refresh_steps == 0:
            first = plan.num_prompts * (step // plan.refresh_steps)
            own_prompts = ids[first : first + plan.num_prompts][team.rank :: team.num_processes]
            continuations = greedy_continuations(
                model, own_prompts, num_new_tokens=plan.num_new_tokens, ngram=plan.ngram
            )
        batch_size, length = plan.optimisation.batch_size, plan.optimisation.sequence_length
        shape = (max(1, batch_size // team.num_processes), length + 1)
        windows = crop_batch(corpus.training, corpus.shares, shape, generator).to(settings.device)
        text_loss = next_token_losses(model, windows, use_bfloat16=settings.use_bfloat16).mean()
        num_rows = max(1, CONTINUATIONS_PER_STEP // team.num_processes)
        rows = torch.randperm(len(continuations.tokens), generator=generator)[:num_rows]
        tokens, is_repeated = continuations.tokens[rows], continuations.is_repeated[rows]
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.use_bfloat16):
            logits = model(input_ids=tokens[:, :-1].to(settings.device), use_cache=False).logits
        punishment = unlikelihood_loss(
            logits, tokens[:, 1:].to(settings.device), is_repeated[:, 1:].to(settings.device)
        )
        torch.autograd.backward(text_loss + plan.weight * punishment)
        optimiser.step(step, progress)
        step += 1
        if team.rank == 0 and step % plan.refresh_steps == 0:
            evaluated = held_out_loss(model, corpus, settings, length)
            print(
                f"unlikelihood step {step}/{plan.optimisation.num_steps} loss {text_loss.item():.3f} "
                f"punishment {punishment.item():.3f} loops {continuations.loop_share:.2f} held-out {evaluated:.3f} "
                f"elapsed {clock.elapsed_s():.0f} s left {clock.remaining_s(step):.0f} s",
                flush=True,
            )
    if team.rank == 0:
        save_model(model, corpus.tokenizer, folder)
        print(f"unlikelihood done: {step} steps, {clock.elapsed_s():.0f} s", flush=True)
