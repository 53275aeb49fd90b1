"""Weights of a Llama-type Hugging Face model, rearranged for the static engine.

Three rearrangements, none of which changes what the model computes (beyond rounding):

- the rows of the query and key weights are interleaved within each head, (0, d/2, 1, d/2 + 1, ...), so that rotary
  embedding turns neighbours and is one complex product; q and k move alike, so their inner products stay;
- query, key and value weights are one matrix, gate and up another;
- where `folds_norms`, each RMS norm's weight is multiplied into the matrix that follows it, times sqrt(hidden), and the
  norm that remains is x / sqrt(|x|^2 + hidden * eps).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from executor.models.engines.projections import PlainProjection, Projection, can_pack, laid_out
from executor.models.settings import Layout

SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3")
STABLE_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with the length of the context


def why_unsupported(config: PreTrainedConfig, capacity: int) -> str | None:
    """Reason why the static engine cannot run this architecture up to `capacity` tokens; None if it can."""
    settings: Any = config  # attributes of the concrete config
    if settings.model_type not in SUPPORTED_TYPES:
        return f"model type {settings.model_type!r} is not one of {', '.join(SUPPORTED_TYPES)}"
    if settings.hidden_act not in ("silu", "swish"):
        return f"its activation {settings.hidden_act!r} is not silu"
    if getattr(settings, "quantization_config", None) is not None:
        return "its weights are quantised"
    rope = getattr(settings, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in STABLE_ROPE_TYPES:
        return f"its rope type {rope['rope_type']!r} depends on the length of the context"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates only a part of each head"
    window = getattr(settings, "sliding_window", None)
    layer_types = getattr(settings, "layer_types", None) or ()
    slides = settings.model_type == "mistral" or "sliding_attention" in layer_types
    if slides and window is not None and window < capacity:
        return f"its sliding window of {window} tokens is shorter than the capacity of {capacity}"
    return None


_KINDS = ("query_key_value", "attention_out", "gate_up", "down")


class Block(NamedTuple):
    """One decoder block. A norm weight is None where it is folded into the projection after it."""

    attention_norm: Tensor | None  # (hidden,)
    query_key_value: Projection
    query_key_norm: Tensor | None  # (heads + kv_heads, head_dim), Qwen3 only
    attention_out: Projection
    mlp_norm: Tensor | None
    gate_up: Projection
    down: Projection


class Weights(NamedTuple):
    """A whole model."""

    embedding: Tensor  # (vocab, hidden)
    blocks: list[Block]
    final_norm: Tensor | None
    head: Projection
    rotary: Tensor  # (positions, 1, head_dim / 2), complex
    layouts: dict[str, str]  # of each kind of projection, with its shape


def lift(
    model: Any,
    *,
    num_positions: int,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
    folds_norms: bool,
    layout: Layout = Layout.PLAIN,
) -> Weights:
    """Rearranged copies of a LlamaForCausalLM's weights (or of one of the other supported types).

    model: the transformers module; its rotary embedding makes the table, so that every rope scaling is its own. layout: plain
    is taken where there is no other.
    """
    lifter = _Lifter(device, dtype, folds_norms)
    decoder, head = model.model, model.get_output_embeddings()
    plain = Weights(
        embedding=lifter.placed(decoder.embed_tokens.weight),
        blocks=[lifter.block(layer, model.config) for layer in decoder.layers],
        final_norm=lifter.norm(decoder.norm.weight),
        head=lifter.projection([head.weight[:vocab_size]], [None], after=decoder.norm.weight),
        rotary=_rotary_table(decoder.rotary_emb, num_positions, dtype).to(device),
        layouts={},
    )
    return _laid_out(plain, layout if can_pack(device, dtype) else Layout.PLAIN)


def _laid_out(weights: Weights, layout: Layout) -> Weights:
    """The same weights, each kind of projection in its layout; one kind after the other, so that only one is there twice."""
    blocks, layouts = weights.blocks, {}
    head: Any = weights.head
    model_bytes = sum(getattr(block, kind).columns.nbytes for block in blocks for kind in _KINDS) + head.columns.nbytes
    for kind in _KINDS:
        num_inputs, num_outputs = getattr(blocks[0], kind).columns.shape
        laid, taken = laid_out([getattr(block, kind) for block in blocks], layout, model_bytes=model_bytes)
        for index, projection in enumerate(laid):  # in place, which frees the copies that were not taken
            named: dict[str, Any] = {kind: projection}
            blocks[index] = blocks[index]._replace(**named)
        layouts[f"{kind} {num_outputs}x{num_inputs}"] = taken.value
    num_inputs, num_outputs = head.columns.shape
    (laid_head,), taken = laid_out([head], layout, model_bytes=model_bytes)
    layouts[f"head {num_outputs}x{num_inputs}"] = taken.value
    return weights._replace(head=laid_head, layouts=layouts)


class _Lifter(NamedTuple):
    """Where copies of weights go, and whether norms are folded into the projections after them."""

    device: torch.device
    dtype: torch.dtype
    folds_norms: bool

    def placed(self, weight: Tensor) -> Tensor:
        """A copy of a weight in its place."""
        return weight.detach().to(self.device, self.dtype)

    def norm(self, weight: Tensor) -> Tensor | None:
        """The weight of a norm, unless it is folded."""
        return None if self.folds_norms else self.placed(weight)

    def projection(
        self, weights: list[Tensor], biases: list[Tensor | None], *, after: Tensor | None = None
    ) -> Projection:
        """Several projections of one input as a single one. after: weight of the norm before it, which may be folded in."""
        weight = torch.cat([self.placed(each) for each in weights])
        if after is not None and self.folds_norms:
            weight = weight * (self.placed(after) * weight.shape[1] ** 0.5)
        bias = None if biases[0] is None else torch.cat([self.placed(each) for each in biases if each is not None])
        return PlainProjection(weight, bias)

    def block(self, layer: Any, config: Any) -> Block:
        """One decoder block; layer, config: of transformers."""
        attention, mlp = layer.self_attn, layer.mlp
        turned = [(attention.q_proj, config.num_attention_heads), (attention.k_proj, config.num_key_value_heads)]
        query_key_norm = None
        if hasattr(attention, "q_norm"):
            counts = [count for _, count in turned]
            norms = zip((attention.q_norm, attention.k_norm), counts, strict=True)
            query_key_norm = self.placed(
                torch.cat([_interleaved(norm.weight, 1).expand(count, -1) for norm, count in norms])
            )
        biases = [None if p.bias is None else _interleaved(p.bias, count) for p, count in turned]
        return Block(
            attention_norm=self.norm(layer.input_layernorm.weight),
            query_key_value=self.projection(
                [*(_interleaved(p.weight, count) for p, count in turned), attention.v_proj.weight],
                [*biases, attention.v_proj.bias],
                after=layer.input_layernorm.weight,
            ),
            query_key_norm=query_key_norm,
            attention_out=self.projection([attention.o_proj.weight], [attention.o_proj.bias]),
            mlp_norm=self.norm(layer.post_attention_layernorm.weight),
            gate_up=self.projection(
                [mlp.gate_proj.weight, mlp.up_proj.weight],
                [mlp.gate_proj.bias, mlp.up_proj.bias],
                after=layer.post_attention_layernorm.weight,
            ),
            down=self.projection([mlp.down_proj.weight], [mlp.down_proj.bias]),
        )


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head in the order 0, d/2, 1, d/2 + 1, ...; weight: (num_heads * d, ...)."""
    halves = weight.detach().reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).flatten(0, 2)


def _rotary_table(rotary_embedding: Any, num_positions: int, dtype: torch.dtype) -> Tensor:
    """cos + i sin of every position and pair, (positions, 1, head_dim / 2)."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    positions = torch.arange(num_positions, device=rotary_embedding.inv_freq.device)[None]
    cos, sin = rotary_embedding(torch.empty(0, dtype=real, device=positions.device), position_ids=positions)
    num_pairs = cos.shape[-1] // 2  # the second half repeats the first
    return torch.complex(cos[0, :, :num_pairs], sin[0, :, :num_pairs])[:, None]
