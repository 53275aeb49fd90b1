"""The resident engine: a Llama-type model whose cache, positions and masks live on the device, so that steps can be graphs.

The cache has one tensor of keys and one of values a block, (slots, kv_heads, head_dim). Its first slots are for branch
tails, token j of row i in slot j * width + i; the line follows. So the prefix is never copied for a branch, rollback is a
length, and adopting a row copies its tail and nothing else. `forward` takes device tensors only and never waits;
`extend`, `grow` and the rest serve callers that hold token ids on the host (see `executor.models.engines.base.Engine`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from executor.models.engines.base import check_adoption, check_extension, check_growth, check_roll_back, check_starts
from executor.resident.operations import Operations, Rotation, TorchOperations, View
from executor.resident.weights import ResidentWeights

_CHUNK = 256  # longest piece of a prompt in one forward
PAD = 64  # slots behind the capacity, for rows that fill up a chunk's width
NUM_TAIL_SLOTS = 512


class ResidentEngine:
    """A model on its device; see the module's text. One request at a time."""

    @torch.inference_mode()
    def __init__(self, weights: ResidentWeights, *, capacity: int, num_feature_layers: int = 0) -> None:
        shape = weights.shape
        self.weights = weights
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        self.capacity = capacity
        self.vocab_size: int = weights.head.shape[0]
        self.head_tokens: Tensor | None = None
        self.hidden_size, self.num_layers = shape.hidden_size, shape.num_layers
        self.num_feature_layers = num_feature_layers
        self.features = torch.empty(0, num_feature_layers, self.hidden_size, device=self.device)
        self._torch = TorchOperations(eps=shape.norm_eps)
        self._operations, self._largest_rows = _operations_for(weights)
        # Zeros, not empty: a masked slot is multiplied by zero, and zero times NaN is NaN.
        num_slots = NUM_TAIL_SLOTS + capacity + PAD
        cache = (shape.num_layers, num_slots, shape.num_kv_heads, shape.head_dim)
        self._keys = torch.zeros(cache, device=self.device, dtype=self.dtype)
        self._values = torch.zeros(cache, device=self.device, dtype=self.dtype)
        self._length = 0
        self._starts: tuple[int, ...] = ()
        self._num_grown = 0

    def starts_early(self, is_on: bool) -> None:
        """Whether kernels are launched while the ones before them end (see `TritonOperations`), from the next graph on.

        Off until it was measured on a GPU; kernels are tuned anew.
        """
        self._operations, self._largest_rows = _operations_for(self.weights, starts_early=is_on)

    # What graphs are made of.

    def forward(
        self, ids: Tensor, positions: Tensor, slots: Tensor, view: View, *, num_slots: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """All blocks over one chunk: (rows,) ids, positions and slots, all int64 on the device.

        num_slots: slots in use, if the host knows, which spares plain torch to look at the others.
        Returns (rows, hidden) before the final norm, and (rows, num_feature_layers, hidden) of the last blocks' outputs.
        """
        operations = self.operations_for(len(ids))
        weights = self.weights
        rotation = Rotation(positions, weights.cosines, weights.sines)
        hidden = weights.embedding.index_select(0, ids)
        first_feature, kept = self.num_layers - self.num_feature_layers, []
        for index, block in enumerate(weights.blocks):
            keys, values = self._keys[index], self._values[index]
            states = operations.linear(
                hidden, block.query_key_value, bias=block.query_key_value_bias, norm=block.attention_norm
            )
            queries = operations.rotate_and_store(states, rotation, slots, keys, values, block.head_norm)
            mixed = operations.attend(queries, keys[:num_slots], values[:num_slots], view)
            hidden = operations.linear(mixed, block.attention_out, residual=hidden)
            gated = operations.linear(hidden, block.gate_up, norm=block.mlp_norm, gates=True)
            hidden = operations.linear(gated, block.down, residual=hidden)
            if index >= first_feature:
                kept.append(hidden)
        features = torch.stack(kept, dim=1).float() if kept else self.features[:0]
        return hidden, features

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) before the final norm -> (rows, vocab), float32."""
        operations = self.operations_for(len(hidden))
        weights = self.weights
        return operations.linear(hidden, weights.head, norm=weights.final_norm, out_dtype=torch.float32)

    def operations_for(self, num_rows: int) -> Operations:
        """The kernels, or plain torch for chunks wider than they take."""
        return self._operations if num_rows <= self._largest_rows else self._torch

    def line_cache(self) -> tuple[Tensor, Tensor]:
        """(layers, length, kv_heads, head_dim) keys and values of the line."""
        last = NUM_TAIL_SLOTS + self._length
        return self._keys[:, NUM_TAIL_SLOTS:last], self._values[:, NUM_TAIL_SLOTS:last]

    def line(self, first: Tensor, num_rows: int) -> tuple[Tensor, Tensor, View]:
        """Positions, slots and view of `num_rows` tokens appended at `first`, a 0-dim int64 tensor on the device."""
        positions = first + torch.arange(num_rows, device=self.device)
        return positions, positions + NUM_TAIL_SLOTS, View((positions + 1).int(), NUM_TAIL_SLOTS)

    def branches(self, starts: Tensor, step: int) -> tuple[Tensor, Tensor, View]:
        """Positions, slots and view of each branch's token number `step`; starts: (rows,) int64, where they leave the line."""
        num_rows = len(starts)
        if num_rows * (step + 1) > NUM_TAIL_SLOTS:
            raise ValueError(
                f"{num_rows} branches of {step + 1} tokens exceed the {NUM_TAIL_SLOTS} slots for branch tails; "
                "hedge fewer outcomes or fewer steps."
            )
        slots = step * num_rows + torch.arange(num_rows, device=self.device)
        return starts + step, slots, View(starts.int(), NUM_TAIL_SLOTS, num_rows, step + 1)

    def take_tail(self, row: int, width: int, start: int, num_tokens: int) -> None:
        """Copy the head of a branch's tail behind its start on the line: no waiting, and no host copy of any id."""
        if num_tokens:
            last = row + (num_tokens - 1) * width + 1
            for cache in (self._keys, self._values):
                cache[:, NUM_TAIL_SLOTS + start : NUM_TAIL_SLOTS + start + num_tokens] = cache[:, row:last:width]
        self._length = start + num_tokens
        self._starts = ()

    def set_length(self, length: int) -> None:
        """Tell the engine how far graphs have filled the line."""
        self._length = length
        self._starts = ()

    # The interface of `Engine`.

    @property
    def length(self) -> int:
        """Tokens in the line."""
        return self._length

    def reset(self) -> None:
        """Forget everything: a new request."""
        self.set_length(0)

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding table."""
        return self.weights.embedding.index_select(0, self._on_device(tokens)).float()

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line, in pieces of at most _CHUNK; close open branches."""
        check_extension(length=self._length, num_new=len(tokens), capacity=self.capacity)
        self._starts = ()
        hiddens, features = [], []
        for start in range(0, len(tokens), _CHUNK):
            piece = tokens[start : start + _CHUNK]
            positions, slots, view = self.line(torch.tensor(self._length, device=self.device), len(piece))
            self._length += len(piece)
            used = NUM_TAIL_SLOTS + self._length
            hidden, kept = self.forward(self._on_device(piece), positions, slots, view, num_slots=used)
            hiddens.append(hidden)
            features.append(kept)
        if self.num_feature_layers:
            self.features = torch.cat(features)
        if last_only:
            return self.logits(hiddens[-1][-1:])
        return torch.cat([self.logits(hidden) for hidden in hiddens])

    def roll_back(self, length: int) -> None:
        """Cut the line; the slots behind it are overwritten when their turn comes."""
        check_roll_back(length=self._length, wanted=length)
        self.set_length(length)

    @torch.inference_mode()
    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin one branch per entry, after the line's first starts[i] tokens."""
        check_starts(starts, length=self._length)
        self._starts, self._num_grown = tuple(starts), 0
        self._branch_starts = self._on_device(starts)

    @torch.inference_mode()
    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every branch, as one chunk."""
        check_growth(tokens, starts=self._starts, num_grown=self._num_grown, capacity=self.capacity)
        positions, slots, view = self.branches(self._branch_starts, self._num_grown)
        hidden, _ = self.forward(self._on_device(tokens), positions, slots, view)
        self._num_grown += 1
        return self.logits(hidden)

    @torch.inference_mode()
    def adopt(self, row: int, num_tokens: int) -> None:
        """Copy the head of one row's tail behind its start, as the end of the line; close the branches."""
        check_adoption(row, num_tokens, starts=self._starts, num_grown=self._num_grown)
        self.take_tail(row, len(self._starts), self._starts[row], num_tokens)

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(list(numbers), device=self.device)


def _operations_for(weights: ResidentWeights, *, starts_early: bool = False) -> tuple[Operations, int]:
    """The kernels where they can run (CUDA, head sizes that are powers of two), else plain torch; and their widest chunk."""
    plain = TorchOperations(eps=weights.shape.norm_eps)
    head_dim = weights.shape.head_dim
    if weights.embedding.device.type != "cuda" or head_dim < 16 or head_dim & (head_dim - 1):
        return plain, 0
    # Triton comes with torch's CUDA builds only.
    from executor.resident.triton_operations import TritonOperations, max_rows

    most = max_rows(weights.embedding.dtype, weights.shape.num_heads // weights.shape.num_kv_heads)
    starts_early = starts_early and torch.cuda.get_device_capability(weights.embedding.device)[0] >= 9
    return TritonOperations(eps=weights.shape.norm_eps, starts_early=starts_early), most
