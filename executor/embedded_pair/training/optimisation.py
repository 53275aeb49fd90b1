"""How the pair is optimised: Muon for hidden matrices, AdamW for the rest; a schedule bound by steps or time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from executor.embedded_pair.training.data_parallel import Team


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """One stage of training.

    num_steps: optimiser steps. batch_size, sequence_length: in sequences and tokens.
    learning_rate: peak. warmup_steps: linear rise. decay_start: progress in [0, 1] at which the linear fall begins.
    max_minutes: wall time, compilation included, at which the schedule ends early; None lets the steps alone decide.
    """

    num_steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    warmup_steps: int = 60
    decay_start: float = 0.4
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size, self.sequence_length) < 1:
            raise ValueError(f"steps, batch size and sequence length must be at least 1, but got {self}.")
        if not 0 <= self.decay_start < 1:
            raise ValueError(f"decay_start must be in [0, 1), but got {self.decay_start}.")


def learning_rate_factor(optimisation: Optimisation, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, constant, then a linear fall to 2 % at progress 1.

    >>> plan = Optimisation(num_steps=100, batch_size=1, sequence_length=1, learning_rate=1.0, warmup_steps=10)
    >>> [round(learning_rate_factor(plan, step, step / 100), 3) for step in (0, 9, 40, 70, 100)]
    [0.1, 1.0, 1.0, 0.51, 0.02]
    """
    warmup = min(1.0, (step + 1) / max(1, optimisation.warmup_steps))
    fall = max(0.0, progress - optimisation.decay_start) / (1 - optimisation.decay_start)
    return warmup * (1.0 - 0.98 * min(1.0, fall))


@dataclass
class Clock:
    """Progress of one stage: by steps, or by wall time where time would run out first (then the rate falls early)."""

    optimisation: Optimisation
    started_s: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """In [0, 1]; the stage ends at 1."""
        by_steps = step / self.optimisation.num_steps
        if self.optimisation.max_minutes is None:
            return min(1.0, by_steps)
        by_time = self.elapsed_s() / (60 * self.optimisation.max_minutes)
        return min(1.0, max(by_steps, by_time))

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def remaining_s(self, step: int) -> float:
        """Wall time left at the pace so far."""
        progress = max(self.progress(step), 1e-9)
        return self.elapsed_s() * (1 - progress) / progress


class PairOptimiser:
    """Muon (Jordan et al. 2024) on the hidden matrices and AdamW on embeddings and norms, with one learning rate.

    Muon's updates are scaled to AdamW's root mean square, so that one peak rate serves both.
    """

    def __init__(self, model: nn.Module, optimisation: Optimisation, team: Team | None = None) -> None:
        self.team = Team() if team is None else team
        parameters = list(model.named_parameters())
        matrices = [value for name, value in parameters if value.ndim == 2 and "embed" not in name]
        others = [value for name, value in parameters if value.ndim != 2 or "embed" in name]
        self.optimisation = optimisation
        self.matrices = matrices
        self.parameters = [value for _, value in parameters]
        self.optimisers: Sequence[torch.optim.Optimizer] = (
            torch.optim.Muon(
                self.team.own_share(matrices),
                lr=1.0,
                weight_decay=0.1,
                momentum=0.95,
                ns_steps=4,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, step: int, progress: float) -> None:
        """Apply the team's mean gradients, clipped to norm 1, and clear them."""
        self.team.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.optimisation.learning_rate * learning_rate_factor(self.optimisation, step, progress)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        for parameter in self.parameters:
            parameter.grad = None
        self.team.exchange(self.matrices)
