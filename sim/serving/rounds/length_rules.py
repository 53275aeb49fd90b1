"""Draft lengths that follow the load: a table as engines read it, goodput, and a moving average with hysteresis.

Each rule is a frozen setting; `start` gives what chooses for one replica. See `sim.serving.rounds.lengths`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim.serving.costs import SummedModel
from sim.serving.rounds.base import Ints, ServerLoad
from sim.serving.rounds.lengths import Controller

_NO_END = 1 << 60


@dataclass(frozen=True)
class Band:
    """A draft length for a batch of first to last requests, whose contexts have min_context tokens or more, in the mean.

    last, max_context: None has no end. Contexts are below max_context.
    """

    first: int
    last: int | None
    draft_length: int
    min_context: int = 0
    max_context: int | None = None


@dataclass(frozen=True)
class LengthTable:
    """Draft length by the number of running requests, and by their mean context where bands say so.

    The form of vLLM's `num_speculative_tokens_per_batch_size` ([first, last, K], both ends included). hysteresis: a bound must
    be passed by so many requests before the length changes. Raises ValueError for gaps, overlaps and bands out of order:
    vLLM lets a gap carry the length before it; here each load has exactly one band.
    """

    bands: tuple[Band, ...]
    hysteresis: int = 0

    def __post_init__(self) -> None:
        if not self.bands:
            raise ValueError("a table of draft lengths needs at least one band: first, last and length.")
        if self.hysteresis < 0:
            raise ValueError(f"hysteresis must be at least 0 requests, but got {self.hysteresis}.")
        for band in self.bands:
            if band.draft_length < 0 or (band.last is not None and band.last < band.first):
                raise ValueError(f"a band needs first <= last and a length of at least 0, but got {band}.")
        _check_cover(self.bands)

    @classmethod
    def of(cls, *rows: tuple[int, int | None, int], hysteresis: int = 0) -> LengthTable:
        """A table from rows [first, last, K].

        >>> LengthTable.of((1, 64, 3), (65, None, 0)).length_at(65, 0)
        0
        """
        return cls(tuple(Band(*row) for row in rows), hysteresis)

    @classmethod
    def merged(cls, rows: Sequence[tuple[int, int | None, int]]) -> LengthTable:
        """A table from rows [first, last, K], of which neighbours of one length become one band.

        >>> [band.first for band in LengthTable.merged([(1, 1, 3), (2, 2, 3), (3, None, 0)]).bands]
        [1, 3]
        """
        kept: list[tuple[int, int | None, int]] = []
        for row in rows:
            if kept and kept[-1][2] == row[2]:
                row = (kept.pop()[0], *row[1:])
            kept.append(row)
        return cls.of(*kept)

    @property
    def max_length(self) -> int:
        return max(band.draft_length for band in self.bands)

    def length_at(self, num_running: int, context: float) -> int:
        """The length for so many requests with this mean context."""
        return self.bands[self.band_at(num_running, context)].draft_length

    def band_at(self, num_running: int, context: float) -> int:
        """Which band holds; loads are at least 1."""
        num_running = max(num_running, 1)
        for index, band in enumerate(self.bands):
            in_batch = band.first <= num_running <= (band.last or _NO_END)
            if in_batch and band.min_context <= context < (band.max_context or _NO_END):
                return index
        raise AssertionError("the bands of a table cover every load")

    def start(self) -> Controller:
        return _TableController(self)


def _check_cover(bands: Sequence[Band]) -> None:
    """Every batch from 1 on lies in exactly one band at every context."""
    groups: dict[tuple[int, int | None], list[Band]] = {}
    for band in bands:
        groups.setdefault((band.first, band.last), []).append(band)
    expected: int | None = 1
    for first, last in groups:
        if expected is None or first != expected:
            what = "overlap or are out of order" if expected is None or first < expected else "leave a gap"
            raise ValueError(
                f"bands of the batch size {what} at {first}: the band before it ends at "
                f"{'no end' if expected is None else expected - 1}; begin at 1 and let each band begin after the last one."
            )
        expected = None if last is None else last + 1
        reached: int | None = 0
        for band in groups[first, last]:
            if reached is None or band.min_context != reached:
                raise ValueError(
                    f"bands of the context leave a gap or overlap at {band.min_context} for batches {first}."
                )
            reached = band.max_context
        if reached is not None:
            raise ValueError(
                f"bands of the context end at {reached} for batches from {first}; leave the last one open."
            )
    if expected is not None:
        raise ValueError(f"the table ends at a batch of {expected - 1}; leave the end of the last band open.")


class _TableController:
    """A table at work: with hysteresis the band stays until the load is well past its bound."""

    def __init__(self, table: LengthTable) -> None:
        self._table, self._band = table, 0

    def length(self, load: ServerLoad) -> int:
        table, context = self._table, load.context_tokens / max(load.num_running, 1)
        wanted = table.band_at(load.num_running, context)
        if table.hysteresis and wanted != self._band:
            slack = table.hysteresis if wanted < self._band else -table.hysteresis
            if table.band_at(load.num_running + slack, context) == self._band:
                wanted = self._band
        self._band = wanted
        return table.bands[wanted].draft_length

    def learn(self, emitted: Ints, length: int) -> None:
        pass


@dataclass(frozen=True)
class Joining:
    """Prompts that join a batch which goes on for ever: as many as outputs end. Tokens of a request, in the mean.

    They fill the steps on which drafts ride, so that a batch with prompts to read has its best draft length at fewer requests.
    Raises ValueError for prompts below 0 and outputs below 1.
    """

    prompt_tokens: float
    output_tokens: float

    def __post_init__(self) -> None:
        if not (0 <= self.prompt_tokens < math.inf and 1 <= self.output_tokens < math.inf):
            raise ValueError(
                f"requests have prompts of at least 0 and outputs of at least 1 token, but got {self.prompt_tokens} and "
                f"{self.output_tokens}."
            )


@dataclass(frozen=True)
class GoodputRule:
    """The length of the largest goodput, (1 + expected accepted) / seconds of a step: SmartSpec (arXiv:2406.14066).

    model: seconds of forwards. acceptance: marginal chance that draft token 1, 2, ... is accepted, as engines count it; its
    number of entries is the longest draft. smoothing: weight of each step's outcome in a moving estimate of the mean number
    accepted, which scales the chances; 0 believes in them as they are.
    joining: prompts that are read beside the batch; None as in the paper, whose steps decode alone. A step reads whole
    prompts, one more or one less, so that their number is that of the mean; limits of tokens a step are left out.
    """

    model: SummedModel
    acceptance: tuple[float, ...]
    smoothing: float = 0.0
    joining: Joining | None = None

    def __post_init__(self) -> None:
        if not self.acceptance or not all(0 <= chance <= 1 for chance in self.acceptance):
            raise ValueError(f"the goodput rule needs chances of acceptance in [0, 1], but got {self.acceptance}.")
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must lie in [0, 1], but got {self.smoothing}.")

    @property
    def max_length(self) -> int:
        return len(self.acceptance)

    def start(self) -> Controller:
        return _GoodputController(self)

    def goodput(self, load: ServerLoad, length: int, scale: float = 1.0) -> float:
        """Tokens a second of each request, where the whole batch drafts so many tokens. scale: of all chances."""
        emitted = 1.0
        for position in range(length):
            emitted += min(1.0, scale * self.acceptance[position])
        if self.joining is None:
            return emitted / self._step_s(load, length, 0, 0)
        num_joining = load.num_running * emitted / self.joining.output_tokens
        few = math.floor(num_joining)
        fewer_s, more_s = (
            self._step_s(load, length, count, round(count * self.joining.prompt_tokens)) for count in (few, few + 1)
        )
        return emitted / (fewer_s + (num_joining - few) * (more_s - fewer_s))

    def _step_s(self, load: ServerLoad, length: int, num_prompts: int, prompt_tokens: int) -> float:
        """Seconds of drafts and verification, with so many prompts; the draft reads them in its first forward."""
        running, context = load.num_running, load.context_tokens
        drafted_s, joined = 0.0, prompt_tokens
        for position in range(length):
            drafted_s += self.model.draft_s(running + joined, context + running * position, running)
            joined = 0
        num_tokens = running * (length + 1) + prompt_tokens
        return drafted_s + self.model.target_s(num_tokens, context, running + num_prompts)

    def gain(self, load: ServerLoad, length: int) -> float:
        """Goodput of this length over that of plain decoding."""
        return self.goodput(load, length) / self.goodput(load, 0)

    def best_length(self, load: ServerLoad, scale: float = 1.0, *, min_gain: float = 0.0) -> int:
        """The shortest length whose goodput is within min_gain of the best one."""
        goodputs = [self.goodput(load, length, scale) for length in range(self.max_length + 1)]
        best = max(goodputs)
        return next(length for length, goodput in enumerate(goodputs) if goodput * (1 + min_gain) >= best)


class _GoodputController:
    """The rule at work; without speculation it learns nothing and believes in what it knew."""

    def __init__(self, rule: GoodputRule) -> None:
        self._rule, self._scale = rule, 1.0

    def length(self, load: ServerLoad) -> int:
        return self._rule.best_length(load, self._scale)

    def learn(self, emitted: Ints, length: int) -> None:
        weight = self._rule.smoothing
        if weight and length:
            expected = len(emitted) * sum(self._rule.acceptance[:length])
            if expected:
                self._scale += weight * (int((emitted - 1).sum()) / expected - self._scale)


@dataclass(frozen=True)
class MovingAverageRule:
    """Drafts about as long as what was accepted lately, from the lengths that the batch size allows: SGLang's adaptive rule.

    candidates: (fewest running requests, lengths), rising. A moving average of accepted tokens a request with weight alpha,
    looked at every update_interval steps after warmup_steps: one candidate up when it passes the present length - 1 +
    up_hysteresis, one down when it falls below the next shorter one - down_hysteresis.
    """

    candidates: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (1, 3, 5, 7)), (8, (0, 1, 3)), (32, (0, 1)), (64, (0,)))
    alpha: float = 0.2
    warmup_steps: int = 10
    update_interval: int = 5
    up_hysteresis: float = 0.5
    down_hysteresis: float = 0.25

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.candidates]
        if not firsts or firsts[0] != 1 or firsts != sorted(set(firsts)):
            raise ValueError(f"candidates must begin at a batch of 1 and rise, but begin at {firsts}.")
        for first, lengths in self.candidates:
            if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 0:
                raise ValueError(f"lengths of batches from {first} must rise and be at least 0, but are {lengths}.")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], but got {self.alpha}.")
        if self.update_interval < 1 or self.warmup_steps < 0:
            raise ValueError("update_interval must be at least 1 and warmup_steps at least 0.")

    @property
    def max_length(self) -> int:
        return max(lengths[-1] for _, lengths in self.candidates)

    def lengths_at(self, num_running: int) -> tuple[int, ...]:
        """What so many running requests may draft."""
        return next(lengths for first, lengths in reversed(self.candidates) if first <= max(num_running, 1))

    def start(self) -> Controller:
        return _MovingAverageController(self)


class _MovingAverageController:
    """The rule at work."""

    def __init__(self, rule: MovingAverageRule) -> None:
        self._rule = rule
        self._length = rule.lengths_at(1)[-1]
        self._average: float | None = None
        self._num_steps = 0

    def length(self, load: ServerLoad) -> int:
        lengths = self._rule.lengths_at(load.num_running)
        return min(lengths, key=lambda length: (abs(length - self._length), length))

    def learn(self, emitted: Ints, length: int) -> None:
        rule = self._rule
        self._num_steps += 1
        if length:
            accepted = int((emitted - 1).sum()) / len(emitted)
            before = self._average
            self._average = accepted if before is None else before + rule.alpha * (accepted - before)
        if self._average is None or self._num_steps < rule.warmup_steps or self._num_steps % rule.update_interval:
            return
        lengths = rule.lengths_at(len(emitted))
        place = min(range(len(lengths)), key=lambda index: abs(lengths[index] - self._length))
        if place + 1 < len(lengths) and self._average > lengths[place] - 1 + rule.up_hysteresis:
            place += 1
        elif place and self._average < lengths[place - 1] - rule.down_hysteresis:
            place -= 1
        self._length = lengths[place]
