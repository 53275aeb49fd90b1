"""Weights of a Llama-type model as the resident engine reads them: of a Hugging Face module, or random ones of a shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from executor.resident.operations import Norm
from sim.decoding.model_shapes import ModelShape


class BlockWeights(NamedTuple):
    """One decoder block; matrices as in torch.nn.Linear, (outputs, inputs)."""

    attention_norm: Tensor
    query_key_value: Tensor
    query_key_value_bias: Tensor | None
    head_norm: Norm | None
    attention_out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class ResidentWeights(NamedTuple):
    """A whole model on its device. cosines, sines: (positions, head_dim / 2) float32."""

    shape: ModelShape
    embedding: Tensor
    blocks: list[BlockWeights]
    final_norm: Tensor
    head: Tensor
    cosines: Tensor
    sines: Tensor


def shape_of(config: Any) -> ModelShape:
    """The shape of a transformers config of a supported type."""
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        has_bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
        has_head_norm=config.model_type == "qwen3",
        is_tied=bool(config.tie_word_embeddings),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=config.rms_norm_eps,
    )


def place_weights(
    model: Any, *, num_positions: int, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> ResidentWeights:
    """Weights of a transformers module, put together on the device. Its own rotary embedding makes the tables."""

    def place(*parts: Tensor) -> Tensor:
        return torch.cat([part.detach().to(device, dtype) for part in parts])

    def is_unsupported(projection: Any) -> bool:
        return getattr(projection, "bias", None) is not None

    blocks = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if any(map(is_unsupported, (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))):
            raise ValueError("the resident engine reads no biases of output projections; use the hugging_face engine.")
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        has_bias = projections[0].bias is not None
        has_norm = hasattr(attention, "q_norm")
        blocks.append(
            BlockWeights(
                attention_norm=place(layer.input_layernorm.weight),
                query_key_value=place(*(projection.weight for projection in projections)),
                query_key_value_bias=place(*(projection.bias for projection in projections)) if has_bias else None,
                head_norm=Norm(place(attention.q_norm.weight), place(attention.k_norm.weight)) if has_norm else None,
                attention_out=place(attention.o_proj.weight),
                mlp_norm=place(layer.post_attention_layernorm.weight),
                gate_up=place(mlp.gate_proj.weight, mlp.up_proj.weight),
                down=place(mlp.down_proj.weight),
            )
        )
    embedding = place(model.model.embed_tokens.weight)
    head = model.get_output_embeddings().weight
    is_tied = head is model.model.embed_tokens.weight
    rotary = model.model.rotary_emb
    positions = torch.arange(num_positions, device=rotary.inv_freq.device)[None]
    cosines, sines = rotary(torch.empty(0, dtype=torch.float32, device=positions.device), position_ids=positions)
    half = cosines.shape[-1] // 2  # the second half repeats the first
    return ResidentWeights(
        shape=shape_of(model.config),
        embedding=embedding,
        blocks=blocks,
        final_norm=place(model.model.norm.weight),
        head=embedding[:vocab_size] if is_tied else place(head[:vocab_size]),
        cosines=cosines[0, :, :half].contiguous().to(device),
        sines=sines[0, :, :half].contiguous().to(device),
    )


def random_weights(
    shape: ModelShape, *, num_positions: int, vocab_size: int, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> ResidentWeights:
    """Random weights of a shape, drawn on the device: of a trained model's scale, so that nothing overflows."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(num_outputs: int, num_inputs: int) -> Tensor:
        weight = torch.empty(num_outputs, num_inputs, device=device, dtype=dtype)
        return weight.normal_(0.0, num_inputs**-0.5, generator=generator)

    def ones(size: int) -> Tensor:
        return torch.ones(size, device=device, dtype=dtype)

    hidden, head_dim = shape.hidden_size, shape.head_dim
    num_states = (shape.num_heads + 2 * shape.num_kv_heads) * head_dim
    blocks = [
        BlockWeights(
            attention_norm=ones(hidden),
            query_key_value=draw(num_states, hidden),
            query_key_value_bias=torch.zeros(num_states, device=device, dtype=dtype) if shape.has_bias else None,
            head_norm=Norm(ones(head_dim), ones(head_dim)) if shape.has_head_norm else None,
            attention_out=draw(hidden, shape.num_heads * head_dim),
            mlp_norm=ones(hidden),
            gate_up=draw(2 * shape.intermediate_size, hidden),
            down=draw(hidden, shape.intermediate_size),
        )
        for _ in range(shape.num_layers)
    ]
    embedding = draw(shape.vocab_size, hidden)
    powers = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.arange(num_positions, device=device, dtype=torch.float32)[:, None] * shape.rope_theta**-powers
    return ResidentWeights(
        shape=shape,
        embedding=embedding,
        blocks=blocks,
        final_norm=ones(hidden),
        head=embedding[:vocab_size] if shape.is_tied else draw(vocab_size, hidden),
        cosines=angles.cos(),
        sines=angles.sin(),
    )
