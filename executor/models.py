"""Load a target and a draft: any Hugging Face id or folder, one vocabulary, one clear error when it cannot be done."""

import enum
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from executor.engines.base import Engine
from executor.engines.hugging_face import HuggingFaceEngine
from executor.engines.lifted import why_unsupported
from executor.engines.prompt_lookup import PromptLookupEngine, parse_lookup
from executor.engines.static import StaticEngine
from executor.resident.engine import PAD, ResidentEngine
from executor.resident.weights import is_random, place_weights, random_weights, shape_named

_LARGEST_DEFAULT_CAPACITY = 8192  # positions: a cache for all of a long-context model would fill the memory unasked
_WHOLE_FILE_BYTES = 64 << 20  # weights files up to this size are hashed whole
_SAMPLE_BYTES = 64 << 10
_NUM_SAMPLES = 64
_VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model cannot be loaded as asked. One line: what, where, what to do."""


class EngineKind(enum.StrEnum):
    """How a model is run."""

    STATIC = "static"  # fast, Llama-type models
    HUGGING_FACE = "hugging_face"  # any causal language model
    RESIDENT = "resident"  # Llama-type models on a GPU: draft and target in one process, steps as graphs


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that a target and a draft share."""

    size: int  # logits that both engines return: the smaller of the two heads
    target_head_size: int
    draft_head_size: int
    num_tokens: int  # largest id of the tokenizer plus one


@dataclass(frozen=True, kw_only=True)
class Model:
    """One loaded model and what the executor needs to know of it."""

    name: str
    engine: Engine
    tokenizer: Any  # a transformers tokenizer
    eos_token_ids: tuple[int, ...]
    fingerprint: str


@dataclass(frozen=True)
class Pair:
    """A target and a draft over one vocabulary."""

    target: Model
    draft: Model
    vocabulary: Vocabulary


def load_pair(
    target: str | Path,
    draft: str | Path,
    *,
    engine: EngineKind | str = EngineKind.STATIC,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    capacity: int | None = None,
) -> Pair:
    """Target and draft in this process. Their vocabularies are compared before any weight is read."""
    vocabulary = check_vocabularies(target, draft)
    settings: dict[str, Any] = {"engine": engine, "device": device, "dtype": dtype, "capacity": capacity}
    loaded_target = load_model(target, vocab_size=vocabulary.size, **settings)
    return Pair(loaded_target, load_model(draft, vocab_size=vocabulary.size, **settings), vocabulary)


def load_model(
    path: str | Path,
    *,
    engine: EngineKind | str = EngineKind.STATIC,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    capacity: int | None = None,
    vocab_size: int | None = None,
    num_feature_layers: int = 0,
) -> Model:
    """A model with its tokenizer, end-of-sequence ids and fingerprint. For the arguments see `load_engine`."""
    loaded = load_engine(
        path,
        engine=engine,
        device=device,
        dtype=dtype,
        capacity=capacity,
        vocab_size=vocab_size,
        num_feature_layers=num_feature_layers,
    )
    return Model(
        name=str(path),
        engine=loaded,
        tokenizer=load_tokenizer(path),
        eos_token_ids=eos_token_ids(path),
        fingerprint=fingerprint(path),
    )


def load_engine(
    path: str | Path,
    *,
    engine: EngineKind | str = EngineKind.STATIC,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    capacity: int | None = None,
    vocab_size: int | None = None,
    num_feature_layers: int = 0,
) -> Engine:
    """A model's weights behind the engine interface, without its tokenizer.

    path: folder, or id on the Hugging Face hub. capacity: positions in the cache; by default all that the model knows,
    at most 8192. vocab_size: cut the head to this many tokens (see `check_vocabularies`). An architecture that the
    static engine does not know runs on the hugging_face engine, with a warning. A draft named prompt_lookup has no weights
    and needs its vocab_size (see `executor.engines.prompt_lookup`).
    """
    if (lookup := parse_lookup(str(path))) is not None:
        if vocab_size is None:
            raise ModelError(f"{path} has no vocabulary of its own: it can only be a draft, beside a target.")
        capacity = capacity or _LARGEST_DEFAULT_CAPACITY
        return PromptLookupEngine(lookup, vocab_size=vocab_size, capacity=capacity, device=resolve_device(device))
    kind, device, dtype = _engine_kind(engine), resolve_device(device), _dtype(dtype)
    if is_random(path):
        return _random_engine(path, kind, device, dtype, capacity, vocab_size, num_feature_layers)
    config = _config(path)
    capacity = _capacity(path, config, capacity)
    head_size = _head_size(config)
    if vocab_size is not None and not 0 < vocab_size <= head_size:
        raise ModelError(f"vocab_size {vocab_size} does not fit {path}, whose head has {head_size} tokens.")
    if kind is not EngineKind.HUGGING_FACE and (reason := why_unsupported(config, capacity)):
        if kind is EngineKind.RESIDENT:
            raise ModelError(
                f"the resident engine cannot run {path} ({config.model_type}: {reason}); use the hugging_face engine."
            )
        kind = EngineKind.HUGGING_FACE
        warnings.warn(
            f"the static engine cannot run {path} ({config.model_type}: {reason}); it runs on the hugging_face engine.",
            stacklevel=2,
        )
    engine_class: type[StaticEngine] | type[HuggingFaceEngine]
    engine_class = StaticEngine if kind is EngineKind.STATIC else HuggingFaceEngine
    try:
        if kind is EngineKind.RESIDENT:
            weights = place_weights(
                _module(path, dtype),
                num_positions=capacity + PAD,
                vocab_size=vocab_size or head_size,
                device=device,
                dtype=dtype,
            )
            return ResidentEngine(weights, capacity=capacity, num_feature_layers=num_feature_layers)
        return engine_class(
            _module(path, dtype),
            capacity=capacity,
            device=device,
            dtype=dtype,
            vocab_size=vocab_size,
            num_feature_layers=num_feature_layers,
        )
    except torch.OutOfMemoryError as error:
        raise _too_large(path, capacity, device) from error


class ByteTokenizer:
    """A tokenizer for random weights: one token a byte."""

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes, at least one."""
        return list(text.encode()) or [0]

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the tokens that are bytes."""
        del skip_special_tokens
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        """The same for every shape."""
        return {f"<{byte}>": byte for byte in range(256)}


def load_tokenizer(path: str | Path) -> Any:
    """The transformers tokenizer of a model folder or hub id; bytes as tokens for random weights."""
    if is_random(path):
        return ByteTokenizer()
    _config(path)  # tells a missing folder from a missing tokenizer
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"no tokenizer could be loaded from {path} ({_first_line(error)}): the folder needs tokenizer.json or its "
            "like."
        ) from error


def eos_token_ids(path: str | Path) -> tuple[int, ...]:
    """Tokens that end a text: of the generation config if there is one, else of the model config. May be none."""
    if is_random(path):
        return ()
    try:
        ids = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        ids = getattr(_config(path), "eos_token_id", None)
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def check_vocabularies(target: str | Path, draft: str | Path) -> Vocabulary:
    """Hold two models to one vocabulary, from their configs and tokenizers alone.

    The tokenizers must map the same tokens to the same ids. Heads may be padded to different sizes: then both are cut
    to the smaller, with a warning. A draft that is a lookup takes the target's vocabulary as it is.
    """
    if parse_lookup(str(draft)) is not None:
        size = _head_size(_config(target))
        return Vocabulary(size, size, size, max(load_tokenizer(target).get_vocab().values()) + 1)
    tokens = {path: load_tokenizer(path).get_vocab() for path in (target, draft)}
    if tokens[target] != tokens[draft]:
        different = dict(tokens[target].items() ^ tokens[draft].items())
        example = min(different, key=lambda token: (different[token], token))
        raise ModelError(
            f"{target} and {draft} have different vocabularies ({len(tokens[target])} and {len(tokens[draft])} tokens, "
            f"{len(different)} of them not the same, for example {example!r}): choose two models of one family."
        )
    num_tokens = max(tokens[target].values()) + 1
    sizes = {path: _head_size_of(path) for path in (target, draft)}
    for path, size in sizes.items():
        if size < num_tokens:
            raise ModelError(
                f"the head of {path} has {size} tokens, fewer than the {num_tokens} of its tokenizer: "
                "choose a tokenizer that belongs to the model."
            )
    vocabulary = Vocabulary(min(sizes.values()), sizes[target], sizes[draft], num_tokens)
    if sizes[target] != sizes[draft]:
        warnings.warn(
            f"the heads of {target} ({sizes[target]}) and {draft} ({sizes[draft]}) are padded differently: both "
            f"are cut to {vocabulary.size} tokens.",
            stacklevel=2,
        )
    return vocabulary


def fingerprint(path: str | Path) -> str:
    """sha256 over a model's config and weights files: equal for equal models, wherever they lie.

    Files above 64 MiB are sampled: their size, and 64 KiB at 64 places, among them the start, where safetensors names
    every tensor and its shape. Of a lookup, over its settings.
    """
    if is_random(path):
        return hashlib.sha256(str(path).encode()).hexdigest()
    digest = hashlib.sha256()
    if (lookup := parse_lookup(str(path))) is not None:
        return hashlib.sha256(repr(lookup).encode()).hexdigest()
    folder = _folder(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG_KEYS}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        num_bytes = file.stat().st_size
        digest.update(f"{file.name} {num_bytes}".encode())
        with file.open("rb") as stream:
            if num_bytes <= _WHOLE_FILE_BYTES:
                digest.update(stream.read())
                continue
            for sample in range(_NUM_SAMPLES):
                stream.seek((num_bytes - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _config(path: str | Path) -> Any:
    """The transformers config of a folder or hub id, or the error that says why there is none."""
    folder = Path(path)
    if not folder.is_dir() and _looks_like_a_path(path):
        raise ModelError(f"no model folder at {path}: check the path, or give an id of the Hugging Face hub.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{path} is not a model folder: it has no config.json. Give a folder written by save_pretrained."
        )
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the config of {path} cannot be read ({_first_line(error)}): check the name, the network, or the "
            "transformers version."
        ) from error


def _module(path: str | Path, dtype: torch.dtype) -> Any:
    """The transformers module, on the CPU, with every weight found."""
    try:
        with _quiet_transformers():
            module, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        raise ModelError(
            f"the weights of {path} cannot be loaded ({_first_line(error)}): the folder needs complete safetensors of "
            "a causal language model."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{path} lacks {len(missing)} weights, for example {missing[0]}: is it a complete causal language model?"
        )
    return module.eval()


def _folder(path: str | Path) -> Path:
    """Where a model's files lie on this machine."""
    _config(path)
    if Path(path).is_dir():
        return Path(path)
    return Path(str(cached_file(str(path), "config.json"))).parent


def _head_size_of(path: str | Path) -> int:
    return shape_named(path).vocab_size if is_random(path) else _head_size(_config(path))


def _random_engine(
    path: str | Path,
    kind: EngineKind,
    device: torch.device,
    dtype: torch.dtype,
    capacity: int | None,
    vocab_size: int | None,
    num_feature_layers: int,
) -> ResidentEngine:
    """Random weights of a named shape, made on the device: for time and memory, never for text."""
    if kind is not EngineKind.RESIDENT:
        raise ModelError(f"{path} has random weights, which only the resident engine makes: use --engine resident.")
    try:
        shape = shape_named(path)
    except ValueError as error:
        raise ModelError(str(error)) from None
    capacity = capacity or _LARGEST_DEFAULT_CAPACITY
    try:
        weights = random_weights(
            shape,
            num_positions=capacity + PAD,
            vocab_size=vocab_size or shape.vocab_size,
            device=device,
            dtype=dtype,
        )
        return ResidentEngine(weights, capacity=capacity, num_feature_layers=num_feature_layers)
    except torch.OutOfMemoryError as error:
        raise _too_large(path, capacity, device) from error


def _too_large(path: str | Path, capacity: int, device: torch.device) -> ModelError:
    return ModelError(
        f"{path} with a cache of {capacity} positions does not fit the memory of {device}: lower the capacity, or "
        "choose a smaller dtype or model."
    )


def _head_size(config: Any) -> int:
    return int(config.get_text_config(decoder=True).vocab_size)


def _capacity(path: str | Path, config: Any, capacity: int | None) -> int:
    known: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if capacity is None:
        return min(known or _LARGEST_DEFAULT_CAPACITY, _LARGEST_DEFAULT_CAPACITY)
    if capacity < 1:
        raise ModelError(f"a capacity of {capacity} positions holds nothing; give at least 1.")
    if known is not None and capacity > known:
        raise ModelError(
            f"{path} knows {known} positions, so a capacity of {capacity} cannot be filled; give at most {known}."
        )
    return capacity


def _engine_kind(engine: EngineKind | str) -> EngineKind:
    try:
        return EngineKind(engine)
    except ValueError as error:
        raise ModelError(f"unknown engine {engine!r}: choose {' or '.join(EngineKind)}.") from error


def resolve_device(device: torch.device | str) -> torch.device:
    """A device that exists; of CUDA with its number, so that equal devices compare equal."""
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}: write cpu, cuda, or cuda:1 for the second GPU.") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ModelError(f"device {device} was asked for, but torch {torch.__version__} sees no CUDA device: use cpu.")
    index, num = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    if index >= num:
        raise ModelError(
            f"device {device} was asked for, but there are {num} CUDA devices: the last is cuda:{num - 1}."
        )
    return torch.device("cuda", index)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _looks_like_a_path(path: str | Path) -> bool:
    """Hub ids are `name` or `owner/name`; everything else can only mean a file."""
    text = str(path)
    return isinstance(path, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar while a model loads: two workers would draw over each other."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
