"""Gumbel noise that is a function of (seed, request, position, purpose): who draws it, when and where does not matter.

The numbers come from Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011), in integer arithmetic, so that every process and device makes the same bits. There is no state:
nothing is seeded, drawn from or advanced.
"""

import enum
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from executor.request import Request

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10

_NUMBERS_A_BLOCK = 1 << 16  # 32 positions of the embedded pair: few enough to stay in a core's cache
_NUMBERS_KEPT = 1 << 21  # 8 MiB a table

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class Purpose(enum.IntEnum):
    """What a number is for. Two purposes never share a number."""

    SHARED = 0  # added to log p and log q alike: Daliri et al., arXiv:2408.07978
    DRAFT = 1  # the draft's own choice, where noise is not shared
    ACCEPT = 2  # the acceptance draws of the ratio rules
    RESIDUAL = 3  # the choice of a correction token


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four random 32-bit words for each counter.

    counter: four int64 tensors of one shape, values in [0, 2^32). key: two 32-bit words.
    Returns four int64 tensors, values in [0, 2^32).
    """
    first, second, third, fourth = counter
    key_0, key_1 = key
    for _ in range(_NUM_ROUNDS):
        # A product of two words fills 64 bits and wraps in int64, but its bits are right; only words must be positive
        # and below 2^32 before they are multiplied, so that one mask a round suffices for each.
        product_0, product_1 = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first = (product_1 >> 32).bitwise_xor_(second).bitwise_xor_(key_0).bitwise_and_(_WORD)
        third = (product_0 >> 32).bitwise_xor_(fourth).bitwise_xor_(key_1).bitwise_and_(_WORD)
        second, fourth = product_1, product_0
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _WORD, (key_1 + _KEY_STEPS[1]) & _WORD
    return first, second & _WORD, third, fourth & _WORD


def uniform(
    seed: int,
    request: int,
    positions: Sequence[int] | Tensor,
    num_columns: int,
    purpose: Purpose,
    device: torch.device | str = "cpu",
    columns: Tensor | None = None,
    *,
    attempt: int = 0,
) -> Tensor:
    """(num_positions, num_columns) float64, strictly between 0 and 1, one of 2^32 equidistant values.

    columns: make these columns alone, in their order: (num_positions, len(columns)), the very numbers of the whole.
    attempt: other numbers for the same position and purpose, below 2^24.
    """
    if not 0 <= request <= _WORD:
        raise ValueError(f"a noise request key must lie in [0, 2^32), but got {request}.")
    rows = torch.as_tensor(positions, dtype=torch.int64, device=device)
    if columns is None:
        needed = torch.arange((num_columns + 3) // 4, device=device)
    else:
        needed, places = torch.unique(columns // 4, return_inverse=True)
    blocks = needed.repeat(len(rows), 1)
    counter = (
        blocks,
        rows[:, None].expand_as(blocks),
        torch.full_like(blocks, request),
        torch.full_like(blocks, purpose + (attempt << 8)),
    )
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    four = torch.stack(words, dim=-1)  # (positions, blocks, 4)
    numbers = four.flatten(1)[:, :num_columns] if columns is None else four[:, places, columns % 4]
    return numbers.double().add_(0.5).mul_(2.0**-32)


def gumbel(
    seed: int,
    request: int,
    positions: Sequence[int] | Tensor,
    vocab_size: int,
    purpose: Purpose = Purpose.SHARED,
    device: torch.device | str = "cpu",
    columns: Tensor | None = None,
    *,
    attempt: int = 0,
) -> Tensor:
    """Standard Gumbel noise, (num_positions, vocab) float32: -log(-log u), logarithms in float64.

    argmax(log p + noise) has the law p (Gumbel-max). Values lie within [-3.2, 22.9], which cuts off 2^-33 of the law.
    columns: of these tokens alone, (num_positions, len(columns)).
    """
    numbers = uniform(seed, request, positions, vocab_size, purpose, device, columns, attempt=attempt)
    return numbers.log_().neg_().log_().neg_().float()


class NoiseTable:
    """Shared noise of one request, made in blocks of positions ahead of use and kept while it is recent.

    columns: token ids whose noise is wanted; rows then have these columns instead of the vocabulary's.
    """

    def __init__(
        self,
        seed: int,
        request: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
        purpose: Purpose = Purpose.SHARED,
        columns: Tensor | None = None,
    ) -> None:
        self._key = (seed, request)
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._purpose = purpose
        self._columns = columns
        num_columns = vocab_size if columns is None else len(columns)
        self._positions_a_block = max(1, _NUMBERS_A_BLOCK // num_columns)
        self._num_kept = max(2, _NUMBERS_KEPT // (self._positions_a_block * num_columns))
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    def rows(self, first: int, count: int) -> Tensor:
        """Noise of positions first, ..., first + count - 1: (count, vocab) float32. Do not write into it."""
        size = self._positions_a_block
        block, offset = divmod(first, size)
        if offset + count <= size:
            return self._block(block)[offset : offset + count]
        pieces = [self._block(index) for index in range(block, (first + count - 1) // size + 1)]
        return torch.cat(pieces)[offset : offset + count]

    def at(self, positions: Sequence[int]) -> Tensor:
        """Noise of any positions, (len(positions), vocab) float32."""
        first, last = min(positions), max(positions)
        rows = self.rows(first, last - first + 1)
        return rows if first == last else rows[[position - first for position in positions]]

    def prepare(self, num_positions: int) -> None:
        """Make the noise of positions 0, ..., num_positions - 1 now, as far as the table keeps it."""
        for index in range(min(-(-num_positions // self._positions_a_block), self._num_kept)):
            self._block(index)

    def _block(self, index: int) -> Tensor:
        block = self._blocks.get(index)
        if block is None:
            first = index * self._positions_a_block
            positions = range(first, first + self._positions_a_block)
            block = gumbel(*self._key, positions, self._vocab_size, self._purpose, self._device, self._columns)
            self._blocks[index] = block
            if len(self._blocks) > self._num_kept:
                self._blocks.popitem(last=False)
        return block


def noise_of(
    request: Request, vocab_size: int, device: torch.device, columns: Tensor | None = None
) -> NoiseTable | None:
    """The shared noise of a request, made for all of its positions now; None at temperature 0.

    columns: token ids that it is made for; None for the whole vocabulary.
    """
    if request.sampling.temperature == 0:
        return None
    noise = NoiseTable(request.seed, request.noise_key, vocab_size, device, columns=columns)
    noise.prepare(request.max_new_tokens)
    return noise
