"""What a training of a distilled draft depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]  # takes a line on how far a training is


@dataclass(frozen=True, kw_only=True)
class WritingPlan:
    """How the target's conversations are written.

    num_streams: that run side by side, one token of each a step. length: of every stream, in tokens. num_top: most probable
    next tokens that are kept with every token. temperatures, shares: of conversations, and how often each occurs. seed: with a
    shard's number it decides the shard.
    """

    num_streams: int = 48
    length: int = 384
    num_top: int = 32
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    shares: tuple[float, ...] = (0.55, 0.35, 0.10)
    prompt_temperature: float = 0.85
    seed: int = 7

    def __post_init__(self) -> None:
        if min(self.num_streams, self.length - 1, self.num_top) < 1:
            raise ValueError(f"num_streams and num_top must be at least 1 and length at least 2, but got {self}.")
        if len(self.shares) != len(self.temperatures) or abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(
                f"there must be one share for each temperature, and they must add up to 1, but got {self}."
            )


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """How the draft learns.

    num_fit_batches: from which the head is fitted before the first step. batch_streams: streams a step. learning_rate: the
    peak; it rises for warmup_steps and falls from decay_start on, a share of the time. report_every: steps between looks at
    what is held out, after which the best draft so far is kept.
    """

    num_fit_batches: int = 8
    batch_streams: int = 8
    learning_rate: float = 8e-4
    warmup_steps: int = 30
    decay_start: float = 0.5
    weight_decay: float = 0.05
    report_every: int = 25
    num_held_out_streams: int = 48
    max_steps: int = 1_000_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """One distilled draft.

    target: its name. num_layers: of the target's own blocks, the first ones and the last. num_head_tokens: tokens that the
    head knows. The defaults make 14.2 M numbers of SmolLM2, a byte each on disk.
    """

    target: str = "smollm2"
    num_layers: int = 3
    num_head_tokens: int = 6144
    writing: WritingPlan = field(default_factory=WritingPlan)
    learning: LearningPlan = field(default_factory=LearningPlan)
    device: str = "cpu"
