"""The broad engine: any transformers causal language model that keeps keys and values, by a mask over its own cache.

Slower than the static engine and less particular: it is what a model runs on that the static engine does not know, and
the oracle that the static engine is tested against. Branch tails are stored behind the line in the same one-row cache,
and a 4D attention mask with explicit positions keeps them apart, so here too the prefix is not copied for a branch.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from executor.models.engines.base import check_adoption, check_extension, check_growth, check_roll_back, check_starts

_ATTENTION_TYPES = {"full_attention", "sliding_attention"}


def cache_argument(model: nn.Module) -> str:
    """The name by which a model's forward takes its cache: `cache` in newer transformers, whose old name ends with 5.40,
    `past_key_values` in older ones and in code that came with a model."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


class HuggingFaceEngine:
    """Any transformers module behind `executor.models.engines.base.Engine`.

    Slot s of the cache holds a token of position positions[s]; for the line the two are equal. Token j of branch row i
    lies in slot length + j * num_rows + i.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vocab_size: int | None = None,
        num_feature_layers: int = 0,
    ) -> None:
        """`vocab_size` cuts a padded head to its first columns; `num_feature_layers` last blocks are kept as features.

        The model is moved to device and dtype, not copied.
        """
        config: Any = model.config.get_text_config(decoder=True)
        layer_types = list(getattr(config, "layer_types", None) or ())
        if unknown := set(layer_types) - _ATTENTION_TYPES:
            raise ValueError(
                f"{config.model_type} has {', '.join(sorted(unknown))} layers, whose state cannot be rolled back by "
                "length; choose a model with full or sliding-window attention."
            )
        self.device = torch.device(device)
        self.dtype = dtype
        self.capacity = capacity
        self.vocab_size: int = vocab_size or config.vocab_size
        self.head_tokens: Tensor | None = None
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.num_feature_layers = num_feature_layers
        self.features = torch.empty(0, num_feature_layers, self.hidden_size, device=self.device)

        to_place: Any = model  # `to` is overloaded per keyword, which mypy does not follow through transformers
        self.module: Any = to_place.to(device=self.device, dtype=dtype).eval()
        self.cache_argument = cache_argument(model)
        self._layer_types = set(layer_types)
        self._window: int | None = getattr(config, "sliding_window", None)
        if not layer_types and getattr(config, "use_sliding_window", True) is False:
            self._window = None
        self._block_outputs: dict[int, Tensor] = {}
        if num_feature_layers:
            blocks = self._decoder_blocks()
            for index in range(self.num_layers - num_feature_layers, self.num_layers):
                blocks[index].register_forward_hook(self._keeper(index))

        self._cache = DynamicCache()
        self._length = 0
        self._starts: tuple[int, ...] = ()
        self._num_grown = 0

    # The interface of `Engine`.

    @property
    def length(self) -> int:
        """Tokens in the line."""
        return self._length

    def reset(self) -> None:
        """Forget everything: a new request."""
        self._cache = DynamicCache()
        self._length = 0
        self._starts = ()

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """What the model's input embedding gives for the tokens."""
        embeddings: Tensor = self.module.get_input_embeddings()(torch.tensor(tokens, device=self.device))
        return embeddings.float()

    def roll_back(self, length: int) -> None:
        """Cut the line, and whatever branches stored behind it."""
        check_roll_back(length=self._length, wanted=length)
        self._length = length
        self._starts = ()
        self._crop(length)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line; close open branches."""
        check_extension(length=self._length, num_new=len(tokens), capacity=self.capacity)
        self.roll_back(self._length)
        positions = torch.arange(self._length, self._length + len(tokens), device=self.device)
        slots = torch.arange(self._length + len(tokens), device=self.device)
        logits = self._forward(tokens, positions, slots[None] <= positions[:, None], slots)
        self._length += len(tokens)
        if self.num_feature_layers:
            kept = [self._block_outputs[index] for index in sorted(self._block_outputs)]
            self.features = torch.stack(kept, dim=1).float()
        return logits[-1:] if last_only else logits

    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin one branch per entry, after the line's first starts[i] tokens."""
        check_starts(starts, length=self._length)
        self.roll_back(self._length)
        self._starts = tuple(starts)
        self._num_grown = 0

    @torch.inference_mode()
    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every branch, as one chunk."""
        check_growth(tokens, starts=self._starts, num_grown=self._num_grown, capacity=self.capacity)
        num_rows, num_tails = len(tokens), self._num_grown + 1
        starts = torch.tensor(self._starts, device=self.device)
        rows = torch.arange(num_rows, device=self.device)
        # For every slot: its position, and the row that owns it (none for the line).
        line = torch.arange(self._length, device=self.device)
        steps = torch.arange(num_tails, device=self.device)
        slot_positions = torch.cat([line, (starts[None] + steps[:, None]).flatten()])
        owners = torch.cat([torch.full_like(line, -1), rows.repeat(num_tails)])
        on_line = owners[None] < 0
        is_visible = torch.where(on_line, slot_positions[None] < starts[:, None], owners[None] == rows[:, None])
        logits = self._forward(tokens, starts + self._num_grown, is_visible, slot_positions)
        self._num_grown += 1
        return logits

    @torch.inference_mode()
    def adopt(self, row: int, num_tokens: int) -> None:
        """Keep the line before the row's start and the head of its tail; drop every other slot."""
        check_adoption(row, num_tokens, starts=self._starts, num_grown=self._num_grown)
        start, num_rows = self._starts[row], len(self._starts)
        tail = [self._length + step * num_rows + row for step in range(num_tokens)]
        kept = torch.tensor([*range(start), *tail], device=self.device)
        for layer in self._cached_layers():
            layer.keys = layer.keys[:, :, kept]
            layer.values = layer.values[:, :, kept]
        self._length = start + num_tokens
        self._starts = ()

    # The model.

    def _forward(self, tokens: Sequence[int], positions: Tensor, is_visible: Tensor, slot_positions: Tensor) -> Tensor:
        """One chunk, stored behind everything cached. is_visible: (rows, slots). Returns (rows, vocab), float32."""
        output = self.module(
            input_ids=torch.tensor([list(tokens)], device=self.device),
            position_ids=positions[None],
            attention_mask=self._masks(positions, is_visible, slot_positions),
            use_cache=True,
            **{self.cache_argument: self._cache},
        )
        logits: Tensor = output.logits[0, :, : self.vocab_size]
        return logits.float()

    def _masks(self, positions: Tensor, is_visible: Tensor, slot_positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The 4D mask, or one for each kind of layer where the model mixes full and sliding-window attention."""
        if self._window is None or self._layer_types == {"full_attention"}:
            return self._as_mask(is_visible)
        is_near = positions[:, None] - slot_positions[None] < self._window
        sliding = self._as_mask(is_visible & is_near)
        if not self._layer_types or self._layer_types == {"sliding_attention"}:
            return sliding
        return {"full_attention": self._as_mask(is_visible), "sliding_attention": sliding}

    def _as_mask(self, is_visible: Tensor) -> Tensor:
        """(rows, slots) booleans as (1, 1, rows, slots) to add to the scores."""
        mask = torch.zeros(is_visible.shape, device=self.device, dtype=self.dtype)
        return mask.masked_fill_(~is_visible, torch.finfo(self.dtype).min)[None, None]

    def _crop(self, length: int) -> None:
        """Drop the slots from `length` on. Negative counts: transformers from 5.18 on refuses positive ones."""
        excess = self._cache.get_seq_length() - length
        if excess > 0:
            self._cache.crop(-excess)

    def _cached_layers(self) -> list[Any]:
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def _decoder_blocks(self) -> nn.ModuleList:
        """The list of decoder blocks, whatever this architecture calls it."""
        for module in self.module.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers:
                return module
        raise ValueError(f"the model has no list of {self.num_layers} decoder blocks to take features from.")

    def _keeper(self, index: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self._block_outputs[index] = hidden[0]

        return keep
