"""A causal language model from a folder written by save_pretrained, or from the Hugging Face hub by its id."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from executor.models.engines.base import Engine
from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.lifted import why_unsupported
from executor.models.engines.static import StaticEngine
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import LARGEST_DEFAULT_CAPACITY, ModelError, fitting, resolve_device, resolve_dtype
from executor.models.sources.hub import hub_answers
from executor.models.sources.shapes import counted_shape
from executor.resident.engine import PAD, ResidentEngine
from executor.resident.weights import place_weights, shape_of
from sim.decoding.model_shapes import ModelShape
from traces.mistakes import parse_json

_WHOLE_FILE_BYTES = 64 << 20  # weights files up to this size are hashed whole
_SAMPLE_BYTES = 64 << 10
_NUM_SAMPLES = 64
_VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path")
# What transformers raises for files that it cannot read.
_REFUSALS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,  # RecursionError among them
    ImportError,
    SafetensorError,
)


class HuggingFaceSource:
    """A folder or hub id. Nothing is read before it is asked for, the config once."""

    def __init__(self, path: str | Path, *, trusts_remote_code: bool = False) -> None:
        self._path, self._trusts = path, trusts_remote_code

    def head_size(self) -> int:
        """Of the config."""
        return int(self._text_config.vocab_size)

    def num_layers(self) -> int:
        """Of the config."""
        return int(self._text_config.num_hidden_layers)

    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        _ = self._config  # tells a missing folder from a missing tokenizer
        with self._refusing("no tokenizer could be loaded from {path}", "the folder needs tokenizer.json or its like"):
            return AutoTokenizer.from_pretrained(self._path, **self._place)

    def eos_token_ids(self) -> tuple[int, ...]:
        """Of the generation config if there is one, else of the model config."""
        config = self.generation_config()
        ids = getattr(self._config, "eos_token_id", None) if config is None else config.eos_token_id
        found = () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)
        if not all(isinstance(token, int) for token in found):
            raise ModelError(f"{self._path}: eos_token_id must be a token's number, or several, but is {ids!r:.60}.")
        return found

    def generation_config(self) -> GenerationConfig | None:
        """How its makers decode with it; None where they do not say."""
        try:
            return GenerationConfig.from_pretrained(self._path, local_files_only=self._is_local)
        except OSError:
            return None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"the generation_config.json of {self._path} cannot be read ({_first_line(error)}): mend or remove it."
            ) from error

    def fingerprint(self) -> str:
        """Over the config and the weights files. Files above 64 MiB are sampled: their size, and 64 KiB at 64 places, among
        them the start, where safetensors names every tensor and its shape.
        """
        digest = hashlib.sha256()
        folder = self._files()
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
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

    def engine(self, settings: EngineSettings) -> Engine:
        """On the engine asked for; an architecture that the static engine does not know runs on the hugging_face engine, with
        a warning. By default the cache holds all positions that the model knows, at most 8192.
        """
        capacity, head_size, vocab_size = self._capacity(settings.capacity), self.head_size(), settings.vocab_size
        if vocab_size is not None and not 0 < vocab_size <= head_size:
            raise ModelError(f"vocab_size {vocab_size} does not fit {self._path}, whose head has {head_size} tokens.")
        self._check_positions(capacity)
        kind = self._kind(settings.kind, capacity)
        device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
        with fitting(self._path, capacity, device):
            if kind is EngineKind.RESIDENT:
                weights = place_weights(
                    self._module(dtype),
                    num_positions=capacity + PAD,
                    vocab_size=vocab_size or head_size,
                    device=device,
                    dtype=dtype,
                )
                return ResidentEngine(weights, capacity=capacity, num_feature_layers=settings.num_feature_layers)
            engine_class: type[StaticEngine] | type[HuggingFaceEngine]
            engine_class = StaticEngine if kind is EngineKind.STATIC else HuggingFaceEngine
            module = self._module(dtype)
            options: dict[str, Any] = {"layout": settings.layout} if engine_class is StaticEngine else {}
            try:
                return engine_class(
                    module,
                    capacity=capacity,
                    device=device,
                    dtype=dtype,
                    vocab_size=vocab_size,
                    num_feature_layers=settings.num_feature_layers,
                    **options,
                )
            except ValueError as error:
                raise ModelError(f"{self._path}: {error}") from error

    def shape(self) -> ModelShape:
        """The numbers that decide a model's time and memory, from its config alone: no weights are read. Those of a model that
        is not of Llama's type are counted in an empty one. Raises `ModelError` for a model without attention.
        """
        if not self._own_class and why_unsupported(self._config, 1) is None:
            return shape_of(self._config)
        with self._refusing("no shape can be read of {path}", "name the shape of a model like it"):
            return counted_shape(self._config, trusts_remote_code=self._trusts)

    def _kind(self, wanted: EngineKind, capacity: int) -> EngineKind:
        """The engine that can run this architecture."""
        config = self._config
        reason = self._own_class or why_unsupported(config, capacity)
        if wanted is EngineKind.HUGGING_FACE or not reason:
            return wanted
        which = f"{self._path} ({config.model_type}: {reason})"
        if wanted is EngineKind.RESIDENT:
            raise ModelError(f"the resident engine cannot run {which}; use the hugging_face engine.")
        warnings.warn(f"the static engine cannot run {which}; it runs on the hugging_face engine.", stacklevel=4)
        return EngineKind.HUGGING_FACE

    def _capacity(self, wanted: int | None) -> int:
        known: int | None = getattr(self._text_config, "max_position_embeddings", None)
        if wanted is None:
            return min(limit for limit in (known, self._num_stable_positions, LARGEST_DEFAULT_CAPACITY) if limit)
        if wanted < 1:
            raise ModelError(f"a capacity of {wanted} positions holds nothing; give at least 1.")
        if known is not None and wanted > known:
            raise ModelError(
                f"{self._path} knows {known} positions, so a capacity of {wanted} cannot be filled; give at most {known}."
            )
        return wanted

    def _check_positions(self, capacity: int) -> None:
        """Refuse models whose cached keys would depend on what comes later, or whose positions only transformers counts."""
        config, stable = self._text_config, self._num_stable_positions
        if stable is not None and capacity > stable:
            raise ModelError(
                f"{self._path} has longrope: beyond {stable} positions all of its keys change, which no cache can follow; "
                f"give a capacity of at most {stable}."
            )
        alibi = getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False)
        if alibi or config.model_type in ("bloom", "mpt"):
            raise ModelError(
                f"{self._path} ({config.model_type}) has ALiBi attention, whose biases follow the place in the cache and not "
                "the position, so that branches would be wrong: choose a model with rotary or learnt positions."
            )

    @property
    def _num_stable_positions(self) -> int | None:
        """Positions up to which a key never changes, where that is fewer than the model knows."""
        config = self._text_config
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in [ropes, *ropes.values()]:  # one for all layers, or one for each kind of layer
            if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
                first = rope.get("original_max_position_embeddings")
                return int(first or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
        return None

    def _check_place(self) -> None:
        """Refuse a folder that is none, before transformers takes its name for an id of the hub."""
        path, folder = self._path, Path(self._path)
        if not str(path).strip():
            raise ModelError("a model's name is empty: name a folder, or an id of the Hugging Face hub.")
        if folder.is_file():
            raise ModelError(
                f"{path} is a file, not a model folder: give a folder written by save_pretrained, or a .gguf file."
            )
        if not folder.is_dir() and _looks_like_a_path(path):
            raise ModelError(f"no model folder at {path}: check the path, or give an id of the Hugging Face hub.")
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ModelError(
                f"{path} is not a model folder: it has no config.json. Give a folder written by save_pretrained."
            )

    @cached_property
    def _config(self) -> Any:
        """The transformers config, or the error that says why there is none."""
        self._check_place()
        path, is_here = self._path, Path(self._path).is_dir()
        advice = "mend the file" if is_here else "check the name, the network, or the transformers version"
        with self._refusing("the config of {path} cannot be read", advice):
            try:
                return AutoConfig.from_pretrained(path, **self._place)
            except OSError as error:
                if is_here or not self._is_local:
                    raise
                raise ModelError(
                    f"no model {path} on this machine: it is neither a folder nor in Hugging Face's cache, and the hub does "
                    "not answer; name a folder, or check the network."
                ) from error

    @cached_property
    def _is_local(self) -> bool:
        """Whether only this machine is looked through: for a folder, and where the hub does not answer."""
        return Path(self._path).is_dir() or not hub_answers()

    @property
    def _place(self) -> dict[str, bool]:
        """What every loader of transformers is told besides the name."""
        return {"trust_remote_code": self._trusts, "local_files_only": self._is_local}

    @property
    def _text_config(self) -> Any:
        return self._config.get_text_config(decoder=True)

    def _module(self, dtype: torch.dtype) -> Any:
        """The transformers module, on the CPU, with every weight found."""
        path = self._path
        advice = "the folder needs complete safetensors of a causal language model"
        with self._refusing("the weights of {path} cannot be loaded", advice), _quiet_transformers():
            module, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, output_loading_info=True, **self._place
            )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{path} lacks {len(missing)} weights, for example {missing[0]}: is it a complete causal language model?"
            )
        return module.eval()

    @property
    def _own_class(self) -> str:
        """Why no engine of ours may run it: its class is code of its own, which is trusted. Empty otherwise."""
        maps = getattr(self._config, "auto_map", None) or {}
        return "its class is code of its own" if self._trusts and "AutoModelForCausalLM" in maps else ""

    @contextmanager
    def _refusing(self, what: str, advice: str) -> Iterator[None]:
        """Say in one line why transformers cannot read a model, and what to do.

        Code of a model's folder is never run unless it is trusted, and then it may fail in any way.
        """
        try:
            yield
        except ModelError:
            raise
        except UnpicklingError as error:
            raise ModelError(
                f"the weights of {self._path} are a pickle that holds more than tensors, which could run code: give "
                "safetensors."
            ) from error
        except Exception as error:
            if not self._trusts and ("trust_remote_code" in str(error) or "custom code" in str(error)):
                raise ModelError(
                    f"{self._path} brings code of its own, which is not run unless you trust it: read that code and add "
                    "--trust-remote-code, or choose a model that transformers itself knows."
                ) from error
            if not self._trusts and not isinstance(error, _REFUSALS):
                raise
            raise ModelError(f"{what.format(path=self._path)} ({_first_line(error)}): {advice}.") from error

    def _files(self) -> Path:
        """Where the files lie on this machine."""
        self._check_place()
        if Path(self._path).is_dir():
            return Path(self._path)
        try:
            return Path(str(cached_file(str(self._path), "config.json", local_files_only=self._is_local))).parent
        except OSError as error:
            raise ModelError(
                f"the files of {self._path} cannot be found ({_first_line(error)}): check the name."
            ) from error


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
