"""GGUF files: dequantised once into a folder of the cache, which every engine can load.

transformers reads the config, the tokenizer and the weights, whose queries and keys llama.cpp stores permuted. What it does
not read is how the text is split before byte pairs are merged, so that is set here for the splits known by name.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from executor.models.sources.base import ModelError
from executor.models.stored.places import Card, cache_folder, made_whole, read_card, write_card
from traces.folder.checksums import sha256_of

SUFFIX = ".gguf"
_CONVERSION = 1  # part of a folder's name: raise it when what is written changes
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def is_gguf(path: str | Path) -> bool:
    """Whether a name means a GGUF file."""
    return str(path).lower().endswith(SUFFIX)


def local_path(path: str | Path) -> str | Path:
    """The folder of a GGUF file's dequantised model; every other name as it is. Raises `ModelError`."""
    return dequantised_folder(Path(path)) if is_gguf(path) else path


def dequantised_folder(path: Path) -> Path:
    """The model folder made of a GGUF file, from the cache if these bytes were dequantised before.

    What quantisation lost is said in a warning, once in a process. Raises `ModelError` for a file that is none, holds no
    language model that transformers can read, or only a part of one.
    """
    try:
        status = path.stat()
    except OSError:
        raise ModelError(f"no GGUF file at {path}: check the path.") from None
    return _dequantised_folder(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.cache
def _dequantised_folder(path: Path, _num_bytes: int, _changed_ns: int) -> Path:
    digest = sha256_of(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest[:16]}-{_CONVERSION}"
    if not folder.is_dir():
        with made_whole(folder) as temporary:
            write_model(path, temporary, Card(source="gguf", origin=path.name, sha256=digest))
    if loss := read_card(folder).loss:
        warnings.warn(f"{path.name}: {loss}", stacklevel=4)
    return folder


def write_model(path: Path, folder: Path, card: Card) -> None:
    """Dequantise a GGUF file into an existing folder, as save_pretrained would write it, float32, with the card, in which the
    types of the tensors are filled in. Raises `ModelError`.
    """
    from gguf import GGUFReader  # here, as only who has such a file needs the package

    with _refusing(path, "this is not a GGUF file that can be read"):
        reader = GGUFReader(path)
        architecture = _text_of(reader, "general.architecture")
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        num_parts = int(reader.fields["split.count"].contents()) if "split.count" in reader.fields else 1
        split = _text_of(reader, "tokenizer.ggml.pre")
        license_name = _text_of(reader, "general.license")
    if num_parts > 1:
        raise ModelError(f"{path} is one of {num_parts} parts: merge them into one file with llama-gguf-split --merge.")
    with _refusing(path, f"its model (architecture {architecture or 'unnamed'}) cannot be read"):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        config.dtype = torch.float32
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=empty)["tensors"]
    _check_complete(path, empty, tensors)
    with _refusing(path, "its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        _set_split(tokenizer, split, path)
        tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_file(
        {name: tensor.float().contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    types_by_number = dict(types.most_common())
    write_card(replace(card, license=card.license or license_name, tensor_types=types_by_number), folder)


def _text_of(reader: Any, field: str) -> str:
    return str(reader.fields[field].contents()) if field in reader.fields else ""


def _check_complete(path: Path, empty: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Every weight of the model is there, in its shape; a head that is the embedding table need not be."""
    shapes = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}  # a tied one once
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ModelError(f"{path} lacks {len(missing)} weights, for example {missing[0]}: is the file complete?")
    for name, shape in shapes.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ModelError(f"{path}: {name} has the shape {found} where its config asks for {shape}.")


def _digits_apart() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)])


def _by_words(num_digits: str) -> Callable[[], Any]:
    pattern = rf"{_WORDS}|\p{{N}}{num_digits}|{_REST}"
    return lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False), _bytes(use_regex=False)]
    )


def _bytes(*, use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# How a text is split before byte pairs are merged, by llama.cpp's names (tokenizer.ggml.pre).
_SPLITS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: _bytes(use_regex=True),
    "smollm": _digits_apart,
    "llama-bpe": _by_words("{1,3}"),
    "qwen2": _by_words(""),
}


def _set_split(tokenizer: Any, split: str, path: Path) -> None:
    """The split that the file names, in place of the one transformers takes for its architecture."""
    if split in _SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = _SPLITS[split]()
    elif split not in ("", "default"):
        warnings.warn(
            f"{path.name}: texts are split before tokenising as {split!r} says, which is not known here: some texts may get "
            f"other tokens than the model's makers give them (known are {', '.join(_SPLITS)}).",
            stacklevel=2,
        )


@contextlib.contextmanager
def _refusing(path: Path, what: str) -> Any:
    """Whatever the readers raise for a broken file, in one line."""
    try:
        yield
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"{path} cannot be read without the package gguf ({error}): install it.") from error
    except Exception as error:  # readers of binary files fail in many ways
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: {what} ({first}).") from error
