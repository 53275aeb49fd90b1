"""The pair's tokenizer, and the corpus as token streams: `<s>` and `</s>` around every function-level block."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from executor.embedded_pair.corpus import SourceFile, split_into_blocks

BOS_TOKEN, EOS_TOKEN = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): no text is out of vocabulary.

    The tokenizer puts `<s>` in front of what it encodes, unless told add_special_tokens=False.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],  # ids 0 and 1, in this order
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, so that AutoTokenizer.from_pretrained(folder) works offline."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def encode_files(tokenizer: Tokenizer, files: Sequence[SourceFile]) -> torch.Tensor:
    """One stream of token ids: `<s> block </s><s> block </s>...`, blocks and files in the given order.

    A model trained on it learns to end a function with `</s>`, while the blocks before still give context.
    Returns (num_tokens,) int64.
    """
    texts = [block.text for file in files for block in split_into_blocks(file.text)]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [token for encoding in encodings for token in (BOS_ID, *encoding.ids, EOS_ID)]
    return torch.tensor(ids, dtype=torch.long)


def crop_batch(
    streams: Sequence[torch.Tensor], shares: Sequence[float], shape: tuple[int, int], generator: torch.Generator
) -> torch.Tensor:
    """Random windows from token streams.

    shares: chance that a window comes from each stream. shape: (batch, window length).
    Returns (batch, length) int64 on the CPU.
    """
    batch_size, length = shape
    chosen = torch.multinomial(torch.tensor(shares), batch_size, replacement=True, generator=generator)
    windows = []
    for index in chosen.tolist():
        stream = streams[index]
        start = int(torch.randint(len(stream) - length, (1,), generator=generator))
        windows.append(stream[start : start + length])
    return torch.stack(windows)
