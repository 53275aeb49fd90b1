"""The shape of a model that is not of Llama's type: its weights are counted in an empty module of transformers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sim.decoding.model_shapes import ModelShape, WeightCounts

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_COUNTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
UNCACHED = ("linear", "conv", "mamba", "recurrent")  # kinds of layers whose state does not grow with the context


def counted_shape(config: Any, *, trusts_remote_code: bool = False) -> ModelShape:
    """The numbers of any transformers config of a causal language model that has attention; no weight is made or read.

    A sliding window is taken as full attention, with a warning: reading its cache is then overestimated. Raises ValueError
    where there is no attention, or experts whose number the config does not name.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_remote_code)
    text = config.get_text_config(decoder=True)
    name = text.model_type
    heads, layers, hidden = (
        getattr(text, key, None) for key in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    if not (heads and layers and hidden):
        raise ValueError(f"a model of type {name} has no attention heads, so the roofline does not describe it")
    window = getattr(text, "sliding_window", None)
    if window and getattr(text, "use_sliding_window", True):
        warnings.warn(
            f"the sliding window of {window} tokens is taken as full attention: beyond it, reads are overestimated.",
            stacklevel=3,
        )
    kinds = [str(kind) for kind in getattr(text, "layer_types", None) or ()]
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        num_heads=heads,
        num_kv_heads=_num_kv_heads(text, heads),
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        vocab_size=text.vocab_size,
        num_kv_layers=sum(not kind.startswith(UNCACHED) for kind in kinds) if kinds else layers,
        counts=_counts(model, text),
    )


def _num_kv_heads(text: Any, heads: int) -> int:
    """Heads of keys and values; families write them in their own ways."""
    if getattr(text, "new_decoder_architecture", False):  # Falcon's
        return int(text.num_kv_heads)
    if getattr(text, "multi_query", False):
        return 1
    return int(getattr(text, "num_key_value_heads", None) or heads)


def _counts(model: Any, text: Any) -> WeightCounts:
    weights = dict(model.named_parameters())  # a tied one once
    head = model.get_output_embeddings()
    tables = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    looked_up = sum(table.numel() for table in tables.values() if head is None or table is not head.weight)
    held = sum(weight.numel() for weight in weights.values())
    experts = sum(weight.numel() for name, weight in weights.items() if ".experts." in name)
    num_experts = next((count for key in EXPERT_COUNTS if (count := getattr(text, key, None))), None)
    num_active = next((count for key in ACTIVE_COUNTS if (count := getattr(text, key, None))), None)
    if experts and not (num_experts and num_active):
        raise ValueError(f"the config of type {text.model_type} does not say how many of its experts a token takes")
    if not experts:
        num_experts = num_active = 1
    return WeightCounts(
        held=held, step=held - looked_up, experts=experts, num_experts=num_experts or 1, num_active=num_active or 1
    )
