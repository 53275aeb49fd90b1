"""A distilled draft learns the target's laws along the target's own conversations; checkpoints, so that it can go on later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from executor.distilled_draft.corpus import Batch, Corpus
from executor.distilled_draft.settings import DraftSettings, LearningPlan, Say
from executor.distilled_draft.starting import first_and_last, fit_head, last_states, start_draft
from executor.embedded_pair.training.optimisation import Clock, Optimisation, learning_rate_factor
from executor.models.stored.distilled import EMBEDDING, DraftCard, write_draft
from traces.files import whole_file

CHECKPOINT_FILE, DRAFT_FOLDER = "checkpoint.pt", "draft"


@dataclass(frozen=True)
class Agreement:
    """How a draft stands beside the target on answers held out.

    acceptance: share of positions whose most probable token is the draft's as well: what is accepted at temperature 0, if the
    answers are greedy. loss: mean cross-entropy over the head's tokens, nats.
    """

    acceptance: float
    loss: float
    num_positions: int


def column_of(head_tokens: Tensor, vocab_size: int) -> Tensor:
    """(vocab_size,): the head's column of each token; -1 for the tokens that it lacks."""
    columns = torch.full((vocab_size,), -1, dtype=torch.long, device=head_tokens.device)
    columns[head_tokens] = torch.arange(len(head_tokens), device=head_tokens.device)
    return columns


def log_laws(draft: Any, batch: Batch) -> Tensor:
    """Log-probabilities over the head's tokens at the positions with a weight, (positions, columns)."""
    logits: Tensor = draft.lm_head(last_states(draft, batch)[batch.weights > 0])
    return logits.float().log_softmax(-1)


def distillation_loss(log_probs: Tensor, batch: Batch, columns: Tensor) -> Tensor:
    """Weighted mean of -sum p log q over the target's most probable tokens that the head knows (Hinton et al. 2015,
    arXiv:1503.02531, at temperature 1). A position whose tokens the head lacks hardly counts.

    log_probs: (positions, columns). columns: of `column_of`.
    """
    places = columns[batch.top_tokens]
    probs = torch.where(places >= 0, batch.top_probs, 0)
    crossed = -(probs * log_probs.gather(-1, places.clamp(min=0))).sum(-1)
    weights = batch.weights[batch.weights > 0]
    return (weights * crossed).sum() / (weights * probs.sum(-1)).sum().clamp(min=1e-6)


@torch.no_grad()
def held_out_agreement(
    draft: Any, corpus: Corpus, head_tokens: Tensor, plan: LearningPlan, columns: Tensor
) -> Agreement:
    """Over at most num_held_out_streams streams; (0, 0, 0) where nothing is held out."""
    hits, loss, num = 0, 0.0, 0
    for cpu_batch in corpus.held_out_batches(plan.batch_streams, plan.num_held_out_streams):
        batch = moved(cpu_batch, head_tokens.device)
        log_probs = log_laws(draft, batch)
        hits += int((head_tokens[log_probs.argmax(-1)] == batch.top_tokens[:, 0]).sum())
        loss += float(distillation_loss(log_probs, batch, columns)) * len(log_probs)
        num += len(log_probs)
    return Agreement(hits / max(1, num), loss / max(1, num), num)


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on another device."""
    return Batch(*(getattr(batch, name).to(device) for name in Batch.__dataclass_fields__))


class Learner:
    """A draft in training: its weights, its optimiser, and how far it is."""

    def __init__(self, settings: DraftSettings, target: Any, corpus: Corpus) -> None:
        """target: the transformers module, float32."""
        self._settings, self._corpus, self._target = settings, corpus, target
        self.num_steps, self.num_tokens, self.seconds = 0, 0, 0.0
        self.best: Agreement | None = None
        self._begin(corpus.frequent_tokens(settings.num_head_tokens, target.config.vocab_size))

    def fit(self) -> None:
        """Before the first step: fit the head to the states of the blocks as they are."""
        plan = self._settings.learning
        rng = np.random.default_rng([plan.seed, 1])
        batches = (self._corpus.training_batch(plan.batch_streams, rng) for _ in range(plan.num_fit_batches))
        fit_head(self._target, self.draft, (moved(batch, self._settings.device) for batch in batches), self.head_tokens)

    def _begin(self, head_tokens: Tensor) -> None:
        settings, target = self._settings, self._target
        blocks = first_and_last(settings.num_layers, target.config.num_hidden_layers)
        self.draft = start_draft(target, blocks=blocks, head_tokens=head_tokens).to(settings.device)
        self.head_tokens = head_tokens.to(settings.device)
        self._columns = column_of(self.head_tokens, target.config.vocab_size)
        trained = [value for value in self.draft.parameters() if value.requires_grad]
        matrices = [value for value in trained if value.ndim > 1]
        others = [value for value in trained if value.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.learning.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._trained = trained
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning.learning_rate, betas=(0.9, 0.95))

    def learn(self, minutes: float, folder: Path, card: DraftCard, say: Say = print) -> None:
        """Learn for some minutes; the best draft on what is held out lies in `folder` / draft afterwards, and a checkpoint.

        Every call is a schedule of its own: the rate rises, stays and falls.
        """
        plan = self._settings.learning
        schedule = Optimisation(
            num_steps=plan.max_steps,
            batch_size=plan.batch_streams,
            sequence_length=1,
            learning_rate=plan.learning_rate,
            warmup_steps=plan.warmup_steps,
            decay_start=plan.decay_start,
            max_minutes=minutes,
        )
        clock = Clock(schedule)
        rng = np.random.default_rng([plan.seed, self.num_steps])
        losses: list[float] = []
        for step in range(plan.max_steps):
            progress = clock.progress(step)
            if progress < 1:
                losses.append(self._step(rng, plan.learning_rate * learning_rate_factor(schedule, step, progress)))
            is_over = progress >= 1 or step + 1 == plan.max_steps
            if is_over or (step + 1) % plan.report_every == 0:
                self._report(folder, card, clock.elapsed_s(), losses, say)
                losses = []
            if is_over:
                break
        self.seconds += clock.elapsed_s()

    def resume(self, folder: Path) -> bool:
        """Go on from the checkpoint of a folder; False where there is none. Raises ValueError for one of another draft."""
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self._settings.device, weights_only=True)
        if (
            len(state["head_tokens"]) != self._settings.num_head_tokens
            or state["num_layers"] != self._settings.num_layers
        ):
            raise ValueError(f"{path} is of a draft of another shape: train into another folder.")
        self._begin(state["head_tokens"].cpu())
        self.draft.load_state_dict(state["draft"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        self.num_steps, self.num_tokens, self.seconds = state["num_steps"], state["num_tokens"], state["seconds"]
        self.best = Agreement(*state["best"]) if state["best"] else None
        return True

    def _step(self, rng: np.random.Generator, rate: float) -> float:
        batch = moved(self._corpus.training_batch(self._settings.learning.batch_streams, rng), self._settings.device)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss = distillation_loss(log_laws(self.draft, batch), batch, self._columns)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.num_steps += 1
        self.num_tokens += batch.tokens.numel()
        return float(loss.detach())

    def _report(self, folder: Path, card: DraftCard, elapsed_s: float, losses: list[float], say: Say) -> None:
        now = held_out_agreement(self.draft, self._corpus, self.head_tokens, self._settings.learning, self._columns)
        loss = sum(losses) / max(1, len(losses))
        say(
            f"step {self.num_steps}: {self.num_tokens / 1e6:.2f} M tokens, loss {loss:.3f}; held out: loss {now.loss:.3f}, "
            f"same first token {now.acceptance:.3f} of {now.num_positions}; {elapsed_s:.0f} s"
        )
        if self.best is None or now.acceptance >= self.best.acceptance:
            self.best = now
            facts: Mapping[str, str | int | float] = {
                "steps": self.num_steps,
                "tokens_seen": self.num_tokens,
                "tokens_written": self._corpus.num_tokens,
                "seconds": round(self.seconds + elapsed_s),
                "device": self._settings.device,
                "held_out_acceptance": round(now.acceptance, 4),
                "torch": torch.__version__,
            }
            whole = DraftCard(**{**vars(card), "training": {**card.training, **facts}})
            write_draft(self.draft, self.head_tokens.cpu(), whole, folder / DRAFT_FOLDER)
        self._save(folder, elapsed_s)
        self._corpus.refresh()  # the target may be writing on meanwhile

    def _save(self, folder: Path, elapsed_s: float) -> None:
        draft = {name: value for name, value in self.draft.state_dict().items() if name != EMBEDDING}
        best = self.best
        state = {
            "draft": draft,
            "optimiser": self._optimiser.state_dict(),
            "head_tokens": self.head_tokens,
            "num_layers": self._settings.num_layers,
            "num_steps": self.num_steps,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds + elapsed_s,
            "best": [best.acceptance, best.loss, best.num_positions] if best else None,
        }
        with whole_file(folder / CHECKPOINT_FILE) as place:
            torch.save(state, place)
