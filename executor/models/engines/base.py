"""What the step loop asks of a model: extend, roll back, and grow branches over one shared prefix."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """One causal language model with its cache, for one request at a time.

    The cache is a line of `length` tokens. Behind it, branches may grow: row i sees the line up to its own start and
    its own tail, never a sibling. The prefix is not copied for a branch, and rollback only moves a length.

    Tokens count from 0, so that the line's token i has position i. All logits are float32, raw (no temperature), of one
    column for each of `head_tokens`, on `device`. They are inference tensors: clone them before training on them.
    """

    vocab_size: int  # tokens of the vocabulary
    # (columns,) int64: ids of the tokens that the head knows, ascending; all others have probability 0. None: column i is
    # token i, and there are vocab_size of them.
    head_tokens: Tensor | None
    hidden_size: int
    num_layers: int
    capacity: int  # positions that the cache can hold, branches included
    device: torch.device
    dtype: torch.dtype  # of the weights
    num_feature_layers: int
    features: (
        Tensor  # (num_new, num_feature_layers, hidden): blocks' outputs before the final norm, of the last `extend`
    )

    @property
    def length(self) -> int:
        """Tokens in the line, committed and pending alike."""
        ...

    def reset(self) -> None:
        """Forget everything: a new request."""
        ...

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Input embeddings of tokens, (len(tokens), embedding width) float32; the cache is left alone."""
        ...

    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line; close open branches.

        Returns (len(tokens), vocab), or (1, vocab) if only the last row is wanted. Row i predicts the token after
        tokens[i].
        """
        ...

    def roll_back(self, length: int) -> None:
        """Cut the line to its first `length` tokens; close open branches."""
        ...

    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin one branch per entry: row i continues the line's first starts[i] tokens (starts[i] <= length)."""
        ...

    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row. Returns (rows, vocab); row i's j-th token has position starts[i] + j."""
        ...

    def adopt(self, row: int, num_tokens: int) -> None:
        """Make the first num_tokens of one row's tail the line's next tokens after starts[row]; close the branches.

        Afterwards length = starts[row] + num_tokens.
        """
        ...


def ids_of(columns: Tensor, head_tokens: Tensor | None) -> Tensor:
    """Token ids of columns of logits, of any shape."""
    return columns if head_tokens is None else head_tokens[columns]


def widened(logits: Tensor, head_tokens: Tensor, vocab_size: int) -> Tensor:
    """Logits of a head's tokens, (rows, columns), over the whole vocabulary, (rows, vocab_size): -inf for all others."""
    return logits.new_full((len(logits), vocab_size), float("-inf")).index_copy_(1, head_tokens, logits)


def check_extension(*, length: int, num_new: int, capacity: int) -> None:
    """A line must stay within its capacity, and must grow by something."""
    if num_new < 1:
        raise ValueError("extend needs at least one token, but got none.")
    if length + num_new > capacity:
        raise ValueError(
            f"context overflow: {length} cached and {num_new} new tokens exceed the capacity of {capacity}; "
            "ask for fewer tokens or load the model with a larger capacity."
        )


def check_roll_back(*, length: int, wanted: int) -> None:
    """Rollback only shortens."""
    if not 0 <= wanted <= length:
        raise ValueError(f"cannot roll back to length {wanted}: the cache holds {length} tokens.")


def check_starts(starts: Sequence[int], *, length: int) -> None:
    """Every branch begins somewhere on the line."""
    if not starts:
        raise ValueError("open_branches needs at least one start, but got none.")
    if min(starts) < 0 or max(starts) > length:
        raise ValueError(f"branches must start within the {length} cached tokens, but got starts {list(starts)}.")


def check_growth(tokens: Sequence[int], *, starts: Sequence[int], num_grown: int, capacity: int) -> None:
    """One token for each open row, within the capacity."""
    if not starts:
        raise ValueError("no branches are open: call open_branches before grow or adopt.")
    if len(tokens) != len(starts):
        raise ValueError(f"grow needs one token for each of the {len(starts)} open branches, but got {len(tokens)}.")
    if max(starts) + num_grown >= capacity:
        raise ValueError(
            f"context overflow: a branch of {num_grown + 1} tokens from position {max(starts)} exceeds the capacity of "
            f"{capacity}; draft fewer tokens or load the model with a larger capacity."
        )


def check_adoption(row: int, num_tokens: int, *, starts: Sequence[int], num_grown: int) -> None:
    """Only an open row's own tail can be adopted."""
    if not starts:
        raise ValueError("no branches are open: call open_branches before grow or adopt.")
    if not 0 <= row < len(starts):
        raise ValueError(f"cannot adopt row {row}: {len(starts)} branches are open.")
    if not 0 <= num_tokens <= num_grown:
        raise ValueError(f"cannot adopt {num_tokens} tokens of row {row}: its tail holds {num_grown}.")
