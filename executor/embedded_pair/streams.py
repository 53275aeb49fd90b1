"""The corpus as a training reads it: a tokenizer, token streams and held-out windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from executor.embedded_pair.corpus import Part, source_files
from executor.embedded_pair.tokens import encode_files, train_tokenizer

TESTS_SHARE = 0.5  # of windows: the library's tests are other text in the same language, and regularise


@dataclass(frozen=True)
class Corpus:
    """The pair's tokenizer and token streams, each (num_tokens,) int64 on the CPU.

    training: streams to crop windows from; shares: chance of each, summing to 1. held_out: never trained on.
    """

    tokenizer: Tokenizer
    training: Sequence[torch.Tensor]
    shares: Sequence[float]
    held_out: torch.Tensor

    def evaluation_windows(self, num: int, length: int) -> torch.Tensor:
        """Held-out windows at even spacing: (num, length)."""
        starts = torch.linspace(0, len(self.held_out) - length, num).long()
        return torch.stack([self.held_out[start : start + length] for start in starts.tolist()])


def read_corpus(*, vocab_size: int, library: Path | None = None, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read a standard library, and train a tokenizer on its training part unless one is given.

    library: its folder; the running Python's by default.
    """
    own, tests, held_out = (
        source_files(part, root=library) for part in (Part.TRAINING, Part.TRAINING_TESTS, Part.HELD_OUT)
    )
    if tokenizer is None:
        tokenizer = train_tokenizer((file.text for file in own), vocab_size)
    streams, shares = [encode_files(tokenizer, own)], [1.0]
    if tests:
        streams.append(encode_files(tokenizer, tests))
        shares = [1 - TESTS_SHARE, TESTS_SHARE]
    return Corpus(tokenizer, streams, shares, encode_files(tokenizer, held_out))
