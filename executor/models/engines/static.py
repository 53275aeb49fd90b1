"""The fast engine: Llama-type models over one preallocated cache, written for few rows and little overhead.

At the width of a decoding step (one to a dozen rows) a small model's time is its number of operations as much as its
arithmetic. So this forward keeps to about a dozen operations a block, makes intermediate tensors and their views once
for each width, and reads weights that `executor.models.engines.lifted` has rearranged. tests/benchmarks/test_engines.py
measures it against the Hugging Face modules.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from executor.models.engines.base import check_adoption, check_extension, check_growth, check_roll_back, check_starts
from executor.models.engines.lifted import Block, lift, why_unsupported
from executor.models.settings import Layout

_CHUNK = 256  # longest piece of a prompt in one forward: bounds the mask and the scores
_PAD = 1  # some chunks run with one row more: see _width
_BRANCH_STEPS = 16  # steps of a branch for which a mask is made at once
_BRANCH_SLOTS = 256  # slots behind the line at first; more are made when needed


class Workspace:
    """Intermediate tensors of one width, and the views that the forward takes of them."""

    def __init__(self, engine: "StaticEngine", num_rows: int) -> None:
        num_heads, num_kv_heads, head_dim = engine.num_heads, engine.num_kv_heads, engine.head_dim

        def empty(num_columns: int) -> Tensor:
            return torch.empty(num_rows, num_columns, device=engine.device, dtype=engine.dtype)

        self.query_key_value = empty((num_heads + 2 * num_kv_heads) * head_dim)
        self.key_value = self.query_key_value[:, num_heads * head_dim :]
        queries = self.query_key_value[:, : num_heads * head_dim]
        turned = self.query_key_value[:, : (num_heads + num_kv_heads) * head_dim]
        self.query_key = turned.view(num_rows, num_heads + num_kv_heads, head_dim)
        self.pairs = self.query_key.view(num_rows, num_heads + num_kv_heads, head_dim // 2, 2)
        # (kv_heads, rows, groups, head_dim)
        self.queries = queries.view(num_rows, num_kv_heads, engine.num_groups, head_dim).transpose(0, 1)
        self.gate_up = empty(2 * engine.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)


class StaticEngine:
    """A Llama-type model on weights lifted from its Hugging Face module; see `executor.models.engines.base.Engine`.

    The cache has the shape (layers, slots, 2, kv_heads, head_dim). Slots [0, length) are the line. With branches open,
    token j of row i lies in slot length + j * width + i: behind the line, so that one forward over all rows is one
    chunk with a mask, rollback is a length, and adopting a row copies its tail and nothing else.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        *,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vocab_size: int | None = None,
        num_feature_layers: int = 0,
        head_tokens: Tensor | None = None,
        layout: Layout = Layout.PLAIN,
    ) -> None:
        """`vocab_size` cuts a padded head to its first rows; `num_feature_layers` last blocks are kept as features.

        head_tokens: ids of the tokens that the model's head has rows for, ascending, where these are not the first ones.
        layout: of the weights on a CPU.
        """
        config = model.config
        if reason := why_unsupported(config, capacity):
            raise ValueError(f"the static engine cannot run this model: {reason}; use the hugging_face engine.")
        self.device = torch.device(device)
        self.dtype = dtype
        self.capacity = capacity
        self.vocab_size: int = vocab_size or config.vocab_size
        self.head_tokens = None if head_tokens is None else head_tokens.to(self.device)
        self.hidden_size: int = config.hidden_size
        self.intermediate_size: int = config.intermediate_size
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_groups = self.num_heads // self.num_kv_heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.hidden_size // self.num_heads
        self.num_feature_layers = num_feature_layers
        self.features = torch.empty(0, num_feature_layers, self.hidden_size, device=self.device)

        # Explicit products beat the fused kernels at these widths on a CPU; half precision and CUDA take the latter.
        self.is_explicit = self.device.type == "cpu" and dtype in (torch.float32, torch.float64)
        self._norm_eps: float = config.rms_norm_eps
        self._norm_floor = self._floor(self.hidden_size)
        self.weights = lift(
            model,
            num_positions=capacity + _PAD,
            vocab_size=self.vocab_size if head_tokens is None else len(head_tokens),
            device=self.device,
            dtype=dtype,
            folds_norms=self.is_explicit,
            layout=layout,
        )
        self.layouts = self.weights.layouts
        self._cache = self._empty_cache(capacity + _BRANCH_SLOTS)
        self._causal = self._causal_mask()
        self.no_mask = torch.zeros(1, 1, device=self.device, dtype=dtype)
        self._workspaces: dict[int, Workspace] = {}
        self._length = 0
        self._starts: tuple[int, ...] = ()
        self._num_grown = 0
        self._branch_positions = torch.empty(0, dtype=torch.long, device=self.device)
        self._branch_mask: Tensor | None = None

    # The interface of `Engine`.

    @property
    def length(self) -> int:
        """Tokens in the line."""
        return self._length

    def reset(self) -> None:
        """Forget everything: a new request."""
        self.roll_back(0)

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding table."""
        ids = torch.tensor(tokens, device=self.device)
        return self.weights.embedding.index_select(0, ids).float()

    def roll_back(self, length: int) -> None:
        """Cut the line; the slots behind it are overwritten when their turn comes."""
        check_roll_back(length=self._length, wanted=length)
        self._length = length
        self._starts = ()

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line, in pieces of at most _CHUNK; close open branches."""
        check_extension(length=self._length, num_new=len(tokens), capacity=self.capacity)
        self._starts = ()
        hiddens, features = [], []
        for start in range(0, len(tokens), _CHUNK):
            piece = tokens[start : start + _CHUNK]
            num_new, width = len(piece), _width(len(piece))
            first = self._length
            mask = None if width == 1 else self._causal[:width, self.capacity - first : self.capacity + width]
            rotary = self.weights.rotary[first : first + width]
            hidden, kept = self._forward(self._padded(piece), rotary, first, mask)
            hiddens.append(hidden[:num_new])
            features.append(kept[:num_new])
            self._length += num_new
        if self.num_feature_layers:
            self.features = torch.cat(features).float()
        if last_only:
            return self.logits(hiddens[-1][-1:])
        return self.logits(hiddens[0] if len(hiddens) == 1 else torch.cat(hiddens))

    @torch.inference_mode()
    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin one branch per entry, after the line's first starts[i] tokens."""
        check_starts(starts, length=self._length)
        self._starts = tuple(starts)
        self._num_grown = 0
        self._branch_positions = self._padded(starts)
        continues_the_line = len(starts) == 1 and starts[0] == self._length
        self._branch_mask = None if continues_the_line else self._mask_of_branches(_BRANCH_STEPS)

    @torch.inference_mode()
    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every branch, as one chunk."""
        check_growth(tokens, starts=self._starts, num_grown=self._num_grown, capacity=self.capacity)
        num_rows, width = len(tokens), _width(len(tokens))
        first = self._length + self._num_grown * width
        if first + width > self._cache.shape[1]:
            self._add_slots(first + width)
        mask = self._branch_mask
        if mask is not None:
            if first + width > mask.shape[1]:
                mask = self._branch_mask = self._mask_of_branches(2 * self._num_grown)
            mask = mask[:, : first + width]
        rotary = self.weights.rotary.index_select(0, self._branch_positions)
        hidden, _ = self._forward(self._padded(tokens), rotary, first, mask)
        self._branch_positions.add_(1)
        self._num_grown += 1
        return self.logits(hidden)[:num_rows]

    @torch.inference_mode()
    def adopt(self, row: int, num_tokens: int) -> None:
        """Copy the head of one row's tail behind its start, as the end of the line; close the branches."""
        check_adoption(row, num_tokens, starts=self._starts, num_grown=self._num_grown)
        start, width, first = self._starts[row], _width(len(self._starts)), self._length + row
        if num_tokens and (width > 1 or start < self._length):
            tail = self._cache[:, first : first + (num_tokens - 1) * width + 1 : width]
            self._cache[:, start : start + num_tokens] = tail.clone()  # the two may overlap
        self._length = start + num_tokens
        self._starts = ()

    # What a batch of requests is made of, too (`executor.models.engines.batched`).

    def line_cache(self) -> Tensor:
        """(layers, length, 2, kv_heads, head_dim) keys and values of the line."""
        return self._cache[:, : self._length]

    # The model.

    def _forward(self, ids: Tensor, rotary: Tensor, first_slot: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """All blocks over one chunk, whose keys and values go to the slots from first_slot on.

        ids: (rows,). rotary: (rows, 1, head_dim / 2), complex. mask: (rows, first_slot + rows), 0 or -inf; None lets
        every row see every slot. Returns (rows, hidden) before the final norm, and the features of all rows.
        """
        num_rows = len(ids)
        num_slots = first_slot + num_rows
        space = self._workspaces.get(num_rows)
        if space is None:
            space = self._workspaces[num_rows] = Workspace(self, num_rows)
        if mask is not None and self.is_explicit and self.num_groups > 1:
            mask = mask.repeat_interleave(self.num_groups, dim=0)
        # One view of the whole cache each, unbound into layers: cheaper than slicing in every block.
        new = self._cache[:, first_slot:num_slots].flatten(2).unbind(0)
        keys = self._cache[:, :num_slots, 0].transpose(1, 2).unbind(0)
        values = self._cache[:, :num_slots, 1].transpose(1, 2).unbind(0)

        hidden = self.weights.embedding.index_select(0, ids)
        first_feature = self.num_layers - self.num_feature_layers
        features = []
        for index, block in enumerate(self.weights.blocks):
            block.query_key_value.into(space.query_key_value, self.normed(hidden, block.attention_norm))
            self.rotate(space, block, rotary)
            new[index].copy_(space.key_value)
            attended = self._attend(space, keys[index], values[index], mask)
            hidden = block.attention_out.added_to(hidden, attended)
            block.gate_up.into(space.gate_up, self.normed(hidden, block.mlp_norm))
            hidden = block.down.added_to(hidden, functional.silu(space.gate).mul_(space.up))
            if index >= first_feature:
                features.append(hidden)
        return hidden, torch.stack(features, dim=1) if features else self.features

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) before the final norm -> (rows, vocab), float32."""
        return self.weights.head(self.normed(hidden, self.weights.final_norm)).float()

    def normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """RMS norm. Without a weight, x / sqrt(|x|^2 + n eps): three kernels, where rms_norm on a CPU runs eight."""
        if weight is None:
            return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._norm_floor)
        return functional.rms_norm(x, (self.hidden_size,), weight, self._norm_eps)

    def rotate(self, space: Workspace, block: Block, rotary: Tensor) -> None:
        """Normalise (Qwen3) and turn queries and keys, in place."""
        if block.query_key_norm is not None:
            normed = functional.rms_norm(space.query_key, (self.head_dim,), None, self._norm_eps)
            torch.mul(normed, block.query_key_norm, out=space.query_key)
        if self.is_explicit:
            torch.view_as_complex(space.pairs).mul_(rotary)
        else:
            space.pairs.copy_(torch.view_as_real(torch.view_as_complex(space.pairs.float()) * rotary))

    def _attend(self, space: Workspace, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of all rows, (rows, heads * head_dim). keys, values: (kv_heads, slots, head_dim)."""
        num_kv_heads, num_rows, num_groups, head_dim = space.queries.shape
        if self.is_explicit:
            queries = space.queries.reshape(num_kv_heads, num_rows * num_groups, head_dim)
            bias = self.no_mask if mask is None else mask
            scores = torch.baddbmm(
                bias, queries, keys.transpose(1, 2), beta=0 if mask is None else 1, alpha=head_dim**-0.5
            )
            mixed = torch.bmm(torch.softmax(scores, dim=-1), values).view(space.queries.shape)
            return mixed.transpose(0, 1).reshape(num_rows, -1)
        queries = space.queries.permute(0, 2, 1, 3).reshape(1, self.num_heads, num_rows, head_dim)
        mixed = functional.scaled_dot_product_attention(
            queries, keys[None], values[None], attn_mask=mask, enable_gqa=num_groups > 1
        )
        return mixed[0].transpose(0, 1).reshape(num_rows, -1)

    # Slots and masks.

    def _padded(self, numbers: Sequence[int]) -> Tensor:
        """A chunk of the width that it runs at; the last entry fills it up."""
        missing = _width(len(numbers)) - len(numbers)
        return torch.tensor([*numbers, *[numbers[-1]] * missing], device=self.device)

    def _floor(self, width: int) -> Tensor:
        """sqrt(n eps): what the norm of a row of n numbers is added to, in quadrature."""
        return torch.tensor((width * self._norm_eps) ** 0.5, device=self.device, dtype=self.dtype)

    def _empty_cache(self, num_slots: int) -> Tensor:
        # Zeros, not empty: a masked slot is multiplied by zero, and zero times NaN is NaN.
        shape = (self.num_layers, num_slots, 2, self.num_kv_heads, self.head_dim)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def _add_slots(self, wanted: int) -> None:
        """A longer cache with the same content: only after more branch tokens than were ever seen."""
        cache = self._empty_cache(wanted + _BRANCH_SLOTS)
        cache[:, : self._cache.shape[1]] = self._cache
        self._cache = cache

    def _causal_mask(self) -> Tensor:
        """(chunk, capacity + chunk); columns [capacity - n, capacity + m) are the mask of m tokens after n cached."""
        rows = torch.arange(_CHUNK, device=self.device)[:, None]
        columns = torch.arange(self.capacity + _CHUNK, device=self.device)
        mask = torch.zeros(_CHUNK, self.capacity + _CHUNK, device=self.device, dtype=self.dtype)
        return mask.masked_fill_(columns > self.capacity + rows, float("-inf"))

    def _mask_of_branches(self, num_steps: int) -> Tensor:
        """(width, length + num_steps * width): each row sees the line before its start, and its own tail."""
        width = _width(len(self._starts))
        mask = torch.zeros(width, self._length + num_steps * width, device=self.device, dtype=self.dtype)
        siblings = torch.full((width, width), float("-inf"), device=self.device, dtype=self.dtype).fill_diagonal_(0)
        mask[:, self._length :].view(width, num_steps, width).copy_(siblings[:, None])
        for row, start in enumerate(self._starts):  # a row that fills up the width may see what it likes
            if start < self._length:
                mask[row, start : self._length] = float("-inf")
        return mask


def _width(num_rows: int) -> int:
    """Rows that a chunk runs with: matrix kernels take longer for 3, 7, 11 than for one row more.

    One thread, 128 -> 2048, fp32: 77 us for three rows and 55 for four, 90 for seven and 76 for eight.
    """
    return num_rows + 1 if num_rows % 4 == 3 else num_rows
