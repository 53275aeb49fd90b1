"""Sampled requests whose draft knows something of its acceptance, and whose H-RAD knows something of the classes.

The paper's SpecBranch steers by two signals: the draft's confidence, and H-RAD's class of the coming window (none accepted,
some, all). Here both are made as informed as one likes: confidence by `traces.fits.acceptance.informed`, classes
by a confusion matrix, or by the nats that they tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from sim.decoding.policies.overlapped.specbranch import ACCEPT, CONFIDENCE, REJECT
from sim.decoding.replay import next_mismatches
from traces.fits.acceptance.informed import InformedLaw
from traces.schema import FinishReason, RequestTrace, Signal

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassConfusion:
    """What a predictor of the three classes says. said: (true class, said class) chances; rows sum to 1."""

    said: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        rows = np.asarray(self.said, dtype=float)
        if rows.shape != (3, 3) or (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1):
            raise ValueError(f"a confusion matrix of three classes has three rows that sum to 1, but got {self.said}.")

    def nats(self, shares: ArrayLike) -> float:
        """Mutual information of true and said class, in nats a prediction. shares: (3,) of the true classes.

        >>> round(ClassConfusion.knowing(1.0).nats([0.5, 0.25, 0.25]), 4)
        1.0397
        """
        joint = np.asarray(shares, dtype=float)[:, None] * np.asarray(self.said)
        apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
        return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())

    def posteriors(self) -> tuple[tuple[float, float, float], ...]:
        """Class probabilities that go with each said class, the classes being equally likely beforehand, as after
        training with balanced classes. The largest one is the said class."""
        columns = np.asarray(self.said).T
        sums = columns.sum(axis=1, keepdims=True)
        rows = np.where(sums > 0, columns / np.maximum(sums, 1e-300), np.eye(3)) + 1e-9 * np.eye(3)  # decides draws
        return tuple((float(row[0]), float(row[1]), float(row[2])) for row in rows)

    @classmethod
    def knowing(cls, known: float, boldness: float = 0.0) -> ClassConfusion:
        """Says the truth with chance `known`, and otherwise that confidence should decide.

        boldness: chance that where it would leave the decision to confidence, it says that all will be accepted.

        >>> ClassConfusion.knowing(0.75).said[0]
        (0.75, 0.25, 0.0)
        """
        if not (0 <= known <= 1 and 0 <= boldness <= 1):
            raise ValueError(f"known and boldness are chances, but got {known} and {boldness}.")
        rest = 1 - known
        return cls(
            (
                (known, rest * (1 - boldness), rest * boldness),
                (0.0, 1 - boldness, boldness),
                (0.0, rest * (1 - boldness), known + rest * boldness),
            )
        )

    @classmethod
    def of_nats(cls, nats: float, shares: ArrayLike) -> ClassConfusion:
        """`knowing` just enough to tell so many nats of classes with these shares. Raises ValueError for more than there
        are to tell.

        >>> round(ClassConfusion.of_nats(0.2, [0.4, 0.4, 0.2]).nats([0.4, 0.4, 0.2]), 6)
        0.2
        """
        most = cls.knowing(1.0).nats(shares)
        if not 0 <= nats <= most:
            raise ValueError(
                f"classes with shares {np.asarray(shares).tolist()} hold {most:.3f} nats; {nats} cannot be told."
            )
        return cls.knowing(float(brentq(lambda known: cls.knowing(known).nats(shares) - nats, 0.0, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Informed:
    """Requests of an informed law, as an `AcceptanceModel`.

    rank_decay: as in `Geometric`. confidence_shift: added to the logit of the draft's largest probability; 0 is a
    calibrated draft, and a draft with a large vocabulary reports less than its acceptance. window: tokens whose acceptance
    is class ACCEPT. classes: what H-RAD says; None for none. Entropy and margin are those of a law with two tokens.
    """

    law: InformedLaw
    window: int
    classes: ClassConfusion | None = None
    rank_decay: float = 0.5
    confidence_shift: float = 0.0
    tail_depth: int = 32
    num_prompt_tokens: int = 128
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, but got {self.window}.")
        if not 0 <= self.rank_decay < 1:
            raise ValueError(f"rank_decay must lie in [0, 1), but got {self.rank_decay}.")

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        # Independent streams: the same outcomes whatever else is asked for.
        of_law, of_ranks, of_tails, of_classes = rng.spawn(4)
        is_right, seen = (values[0] for values in self.law.draw(1, num_tokens, of_law))
        ranks = np.where(is_right, 0, of_ranks.geometric(1 - self.rank_decay, num_tokens))
        tails: dict[int, tuple[Signal, ...]] = {}
        if self.tail_depth:
            ends = np.append(np.flatnonzero(ranks), num_tokens)
            steps = of_tails.standard_normal((num_tokens + 1, self.tail_depth))[ends]
            along = self._signals(self.law.drift(steps, before=seen[np.minimum(ends, num_tokens - 1)]).ravel())
            depth = self.tail_depth
            tails = {end: along[row * depth : (row + 1) * depth] for row, end in enumerate(ends.tolist())}
        return RequestTrace(
            request_id=request_id,
            prompt_id=f"informed-{request_id}",
            num_prompt_tokens=self.num_prompt_tokens,
            max_new_tokens=num_tokens,
            temperature=self.temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(ranks.tolist()),
            signals=self._signals(seen),
            tails=tails,
            tail_depth=self.tail_depth,
            class_probs=said_classes(tuple(ranks.tolist()), self.window, self.classes, of_classes)
            if self.classes
            else (),
            class_window=self.window if self.classes else 0,
        )

    def _signals(self, seen: Floats) -> tuple[Signal, ...]:
        """Of the draft's laws at some u."""
        chance = np.clip(self.law.confidence(seen), 1e-12, 1 - 1e-12)
        told = expit(logit(chance) + self.confidence_shift)
        best = np.clip(np.maximum(told, 1 - told), 0.5, 1 - 1e-12)
        margin = np.log(best) - np.log1p(-best)
        entropy = -best * np.log(best) - (1 - best) * np.log1p(-best)
        return tuple(map(Signal._make, zip(told.tolist(), entropy.tolist(), margin.tolist(), strict=True)))


def said_classes(
    ranks: tuple[int, ...], window: int, classes: ClassConfusion, rng: np.random.Generator
) -> tuple[tuple[float, float, float], ...]:
    """(N + 1,) class probabilities before each position of a request, as a predictor with this confusion matrix gives them."""
    true, posteriors = window_classes(ranks, window), classes.posteriors()
    upto = np.cumsum(classes.said, axis=1)[true]
    said = np.minimum((rng.random(len(true))[:, None] >= upto).sum(axis=1), 2)
    return tuple(posteriors[kind] for kind in said.tolist())


def window_classes(ranks: tuple[int, ...], window: int) -> Ints:
    """(N + 1,) true class of the `window` tokens from each position on: none, some or all of them accepted."""
    run = np.array(next_mismatches(ranks)) - np.arange(len(ranks) + 1)
    classes: Ints = np.where(run == 0, REJECT, np.where(run >= window, ACCEPT, CONFIDENCE))
    return classes
