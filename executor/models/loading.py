"""Load a target and a draft by name: any Hugging Face id or folder, GGUF file, random:SHAPE or lookup, over one vocabulary."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.models.engines.base import Engine
from executor.models.engines.prompt_lookup import PromptLookupEngine
from executor.models.engines.ruled import RuledEngine, asked_of, rules_of, warn_of_ignored
from executor.models.names import Lookup, RandomShape, parse_model
from executor.models.settings import EngineSettings, PairSettings
from executor.models.sources.base import ModelError, Source
from executor.models.sources.distilled import DistilledSource
from executor.models.sources.hugging_face import HuggingFaceSource
from executor.models.sources.lookup import LookupSource
from executor.models.sources.random_shape import RandomSource
from executor.models.stored.distilled import is_distilled
from executor.models.stored.gguf_files import local_path
from executor.resident.engine import ResidentEngine
from traces.schema import Sampling

_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
MIN_SHARED = 0.9  # of the target's tokens: two models of one family differ in a few special ones


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that a target and a draft share."""

    size: int  # logits that both engines return: the smaller of the two heads
    target_head_size: int
    draft_head_size: int
    num_tokens: int  # largest id of the tokenizer plus one


def source_of(path: str | Path, *, trusts_remote_code: bool = False) -> Source:
    """Where the model of this name comes from. trusts_remote_code: whether code in its folder may be run."""
    model = parse_model(path)
    if isinstance(model, Lookup):
        return LookupSource(str(path), model)
    if isinstance(model, RandomShape):
        return RandomSource(str(path), model)
    if is_distilled(model):
        return DistilledSource(Path(model))
    return HuggingFaceSource(local_path(model), trusts_remote_code=trusts_remote_code)


def load_engine(path: str | Path, settings: EngineSettings) -> Engine:
    """A model's weights behind the engine interface, without its tokenizer. Raises `ModelError`.

    path: folder, id on the Hugging Face hub, or GGUF file; random:SHAPE; or prompt_lookup, which needs its vocab_size
    (`check_vocabularies`). An architecture that the static engine does not know runs on the hugging_face engine, with a
    warning.
    """
    return source_of(path, trusts_remote_code=settings.trusts_remote_code).engine(settings)


def load_tokenizer(path: str | Path, *, trusts_remote_code: bool = False) -> Any:
    """The tokenizer of a model."""
    return source_of(path, trusts_remote_code=trusts_remote_code).tokenizer()


def eos_token_ids(path: str | Path, *, trusts_remote_code: bool = False) -> tuple[int, ...]:
    """Tokens that end a text; may be none."""
    return source_of(path, trusts_remote_code=trusts_remote_code).eos_token_ids()


def fingerprint(path: str | Path) -> str:
    """sha256 that is equal for equal models, wherever they lie. No code is run for it."""
    return source_of(path).fingerprint()


def follow_rules(engine: Engine, pair: PairSettings) -> Engine:
    """The engine, its logits changed by the rules that the target's makers decode with, if there are any and they are asked
    for. The draft follows them as well: it is to guess what the target does.
    What is not applied is named in a warning. Raises ModelError for rules on the resident engine.
    """
    source = source_of(pair.target, trusts_remote_code=pair.engine.trusts_remote_code)
    config = source.generation_config() if isinstance(source, HuggingFaceSource) else None
    if config is None or pair.ignores_generation_config:
        return engine
    warn_of_ignored(pair.target, config)
    try:
        rules = rules_of(config, source.eos_token_ids(), engine.device)
    except (ValueError, TypeError, LookupError) as error:
        asked = ", ".join(f"{name}={getattr(config, name)!s:.60}" for name in asked_of(config))
        raise ModelError(
            f"the generation_config of {pair.target} asks for {asked}, of which one cannot be applied ({error}): mend the "
            "file, or ask for plain decoding with --ignore-generation-config."
        ) from error
    if rules and isinstance(engine, ResidentEngine):  # its steps are graphs, which know no sequence
        asked = ", ".join(f"{name}={getattr(config, name)}" for name in asked_of(config))
        raise ModelError(
            f"the generation_config of {pair.target} asks for {asked}, which the resident engine cannot follow: use the "
            "static engine, or ask for plain decoding with --ignore-generation-config."
        )
    has_own_law = isinstance(engine, PromptLookupEngine)  # a lookup proposes one token, whatever the law
    return RuledEngine(engine, rules) if rules and not has_own_law else engine


def sampling_of(target: str | Path, *, trusts_remote_code: bool = False) -> Sampling:
    """How a model's makers sample from it: temperature (0 where they do not sample), top-k and top-p of its generation_config.

    What the file leaves open is 1, all and all: no default of a library's. Raises ModelError where it says nothing of them.
    """
    source = source_of(target, trusts_remote_code=trusts_remote_code)
    config = source.generation_config() if isinstance(source, HuggingFaceSource) else None
    given = {name: getattr(config, name, None) for name in ("do_sample", "temperature", "top_k", "top_p")}
    if all(value is None for value in given.values()):
        raise ModelError(
            f"{target} has no generation_config that says how to sample: leave --model-sampling out and give --temperature."
        )
    samples = given["do_sample"] if given["do_sample"] is not None else given["temperature"] is not None
    if not samples:
        return Sampling(0.0)
    values: list[Any] = [
        default if given[name] is None else given[name] for name, default in _SAMPLING_DEFAULTS.items()
    ]
    try:
        return Sampling(float(values[0]), int(values[1]), float(values[2]))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the generation_config of {target} cannot be followed ({error}): give --temperature."
        ) from error


def check_vocabularies(
    target: str | Path, draft: str | Path, *, allows_difference: bool = False, trusts_remote_code: bool = False
) -> Vocabulary:
    """Hold two models to one vocabulary, from their configs and tokenizers alone.

    The tokenizers must map the same tokens to the same ids, unless a difference is allowed: then the heads are cut to the
    ids that both have, with a warning that names what differs. Heads may be padded to different sizes: then both are cut
    to the smaller, with a warning. A draft that is a lookup takes the target's vocabulary as it is; a distilled one has none
    of its own, and must have been made for the target's.
    """
    sources = {path: source_of(path, trusts_remote_code=trusts_remote_code) for path in (target, draft)}
    own = sources[draft]
    if isinstance(own, DistilledSource):
        own.check_vocabulary(sources[target].tokenizer().get_vocab())
    if isinstance(own, LookupSource | DistilledSource):
        sources[draft] = sources[target]
    tokens = {path: source.tokenizer().get_vocab() for path, source in sources.items()}
    if tokens[target] != tokens[draft]:
        different = dict(tokens[target].items() ^ tokens[draft].items())
        examples = sorted(different, key=lambda token: (different[token], token))
        which = (
            f"{target} and {draft} have different vocabularies ({len(tokens[target])} and {len(tokens[draft])} tokens, "
            f"{len(different)} of them not the same, for example {', '.join(map(repr, examples[:4]))})"
        )
        num_shared = len(tokens[target].items() & tokens[draft].items())
        if num_shared < MIN_SHARED * len(tokens[target]):
            raise ModelError(f"{which}: choose two models of one family.")
        if not allows_difference:
            raise ModelError(f"{which}: choose two models of one family, or allow this with --allow-vocab-difference.")
        warnings.warn(
            f"{which}: decoding goes on over the ids that both have; where an id stands for two tokens, it is the target's.",
            stacklevel=2,
        )
    num_tokens = min(max(vocabulary.values()) + 1 for vocabulary in tokens.values())
    sizes = {path: source.head_size() for path, source in sources.items()}
    for path, size in sizes.items():
        if size < num_tokens:
            raise ModelError(
                f"the head of {path} has {size} tokens, fewer than the {num_tokens} of its tokenizer: "
                "choose a tokenizer that belongs to the model."
            )
    if tokens[target] != tokens[draft]:
        sizes = {path: min(size, max(tokens[path].values()) + 1) for path, size in sizes.items()}
    vocabulary = Vocabulary(min(sizes.values()), sizes[target], sizes[draft], num_tokens)
    if sizes[target] != sizes[draft]:
        warnings.warn(
            f"the heads of {target} ({sizes[target]}) and {draft} ({sizes[draft]}) are padded differently: both "
            f"are cut to {vocabulary.size} tokens.",
            stacklevel=2,
        )
    return vocabulary
