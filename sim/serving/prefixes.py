"""Beginnings of prompts that a replica still has in its cache: blocks by their ids, the ones used longest ago go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Keeps up to `capacity` blocks of block_tokens tokens each. prefixes: of each request, the ids of its prompt's blocks.

    A block is found only behind all blocks before it, as its keys and values hang on them. The cache takes no memory from the
    running requests: engines keep blocks that nobody uses until they are needed, and capacity is what it may grow to.
    """

    def __init__(self, prefixes: Sequence[Sequence[int]], block_tokens: int, capacity: int) -> None:
        self._prefixes, self._block_tokens, self._capacity = prefixes, block_tokens, capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def num_known(self, request: int, num_tokens: int) -> int:
        """Tokens of a request's prompt that need not be read again; the last of its num_tokens always is."""
        count = 0
        for block in self._prefixes[request]:
            if block not in self._blocks:
                break
            self._blocks.move_to_end(block)
            count += 1
        return max(0, min(count * self._block_tokens, num_tokens - 1))

    def add(self, request: int) -> None:
        """Its prompt has been read."""
        for block in self._prefixes[request]:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
