"""The shapes of the pair's models, and how a model is made, saved and loaded."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from executor.embedded_pair.tokens import BOS_ID, EOS_ID, save_tokenizer

HEAD_DIM = 64
FILE_MODE = 0o644


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder of the Llama family with tied embeddings; heads of 64 dimensions."""

    num_layers: int
    hidden_size: int
    intermediate_size: int

    def __post_init__(self) -> None:
        if self.hidden_size % HEAD_DIM:
            raise ValueError(f"hidden_size must be a multiple of {HEAD_DIM}, but got {self.hidden_size}.")


def build_model(shape: Shape, *, vocab_size: int, max_length: int, seed: int) -> LlamaForCausalLM:
    """A fresh float32 model on the CPU, its weights a function of `seed`.

    Residual output projections start smaller by 1 / sqrt(2 * layers), as in GPT-2 (Radford et al. 2019, section 2.3).
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.hidden_size // HEAD_DIM,
        num_key_value_heads=shape.hidden_size // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initialisers of transformers take no generator
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * shape.num_layers))
    return model


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers; tied matrices count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (bfloat16), configurations and tokenizer; each file is replaced at once, readable by everyone."""
    staging = folder.with_name(folder.name + ".part")
    staging.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    # Greedy by default: callers state their own temperature.
    copy.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=EOS_ID, do_sample=False
    )
    copy.save_pretrained(staging)
    save_tokenizer(tokenizer, staging, model.config.max_position_embeddings)
    for path in sorted(staging.iterdir()):
        path.chmod(FILE_MODE)
        os.replace(path, folder / path.name)
    staging.rmdir()


def load_model(folder: Path, device: str) -> LlamaForCausalLM:
    """A saved model in float32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model.to(device)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The saved tokenizer, as the tokenizers library has it."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
