"""Small GGUF files of Llama-type models, written as llama.cpp's converter writes them, and the model each should become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

NUM_HEADS, NUM_KV_HEADS = 4, 2
_MERGES = [("Ġ", "Ġ"), ("a", "b"), ("ab", "c")]
_TOKENS = ["<|end|>", *bytes_to_unicode().values(), *("".join(pair) for pair in _MERGES)]
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama(*, is_tied: bool = False) -> Any:
    """A tiny Llama with random weights, whose rows fill whole blocks of every quantisation."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(_TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=16,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=is_tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data.add_(0.15 * torch.randn_like(weight))
    return model


def write_gguf(
    path: Path,
    model: Any,
    kind: str = "F32",
    *,
    architecture: str = "llama",
    split: str = "smollm",
    num_parts: int = 1,
    omits: str = "",
    has_tokenizer: bool = True,
) -> Any:
    """Write `model`, its matrices as `kind`, and give them the values that are left after quantising; returns it.

    omits: part of the name of tensors that are left out.
    """
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if num_parts > 1:
        writer.add_uint16("split.count", num_parts)
    if has_tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        writer.add_token_list(_TOKENS)
        writer.add_token_types([3, *[1] * (len(_TOKENS) - 1)])
        writer.add_token_merges([" ".join(pair) for pair in _MERGES])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}<|end|>")
    for name, weight in model.named_parameters():
        _add(writer, name, weight, kind if weight.ndim > 1 else "F32", omits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: Any, name: str, weight: Any, kind: str, omits: str) -> None:
    values = weight.detach().numpy()
    wanted = GGMLQuantizationType[kind]
    weight.data = torch.from_numpy(gguf.dequantize(gguf.quantize(values, wanted), wanted).astype(np.float32).copy())
    if "q_proj" in name or "k_proj" in name:
        values = _permuted(values, NUM_HEADS if "q_proj" in name else NUM_KV_HEADS)
    stored = _gguf_name(name)
    if not omits or omits not in stored:
        writer.add_tensor(stored, gguf.quantize(values, wanted), raw_dtype=None if kind in ("F32", "F16") else wanted)


def _permuted(weight: Any, num_heads: int) -> Any:
    """Rotary pairs side by side, as llama.cpp turns them: rows (head, half, pair) become (head, pair, half)."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.weight"
