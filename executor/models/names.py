"""Names of models, as users write them; this is the only place that parses them. Nothing heavy is imported here.

embedded, embedded_small            the shipped pair's models; the second is another, larger draft
smollm2                             a pretrained target, once `specbranch pair fetch smollm2` has brought it; as a draft, the
                                    one that `executor.distilled_draft` ships for it
FILE.gguf                           a GGUF file, dequantised (`executor.models.stored.gguf_files`)
prompt_lookup:max_ngram=3           a draft without weights (`executor.models.engines.prompt_lookup`)
random:llama-3.1-8b                 random weights of a named shape (`sim.decoding.model_shapes.SHAPES`)
anything else                       a folder written by save_pretrained, or an id of the Hugging Face hub
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from executor.models.stored.places import fetched_folder
from sim.decoding.model_shapes import ModelShape, named_shape
from sim.decoding.policies.base import Policy
from sim.decoding.policies.serial.prompt_lookup import PromptLookup

Role = Literal["target", "draft"]

EMBEDDED = "embedded"
_SHIPPED = Path(__file__).parents[1] / "embedded_pair" / "weights"
DISTILLED_DRAFTS = Path(__file__).parents[1] / "distilled_draft" / "weights"
_FOLDERS: dict[str, dict[Role, str]] = {
    EMBEDDED: {"target": "target", "draft": "draft"},
    "embedded_small": {"target": "target", "draft": "draft_small"},
}
FETCHED = ("smollm2",)
_LOOKUP, _RANDOM = "prompt_lookup", "random"


@dataclass(frozen=True)
class Lookup:
    """Which ends of the text are looked up: n-grams of max_ngram down to min_ngram tokens, the longest first.

    Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding (there 3 down to 1): of several occurrences the first one
    counts. There the whole draft is copied from one occurrence; here every token is looked up anew.
    """

    max_ngram: int = 3
    min_ngram: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ValueError(
                f"prompt_lookup needs 1 <= min_ngram <= max_ngram, but got {self.min_ngram} and {self.max_ngram}."
            )


@dataclass(frozen=True)
class RandomShape:
    """Random weights of a shape that is known by name."""

    shape_name: str

    @property
    def shape(self) -> ModelShape:
        """The numbers of the shape. Raises ValueError for a name that is not known."""
        return named_shape(self.shape_name)


def resolve_model(name: str, role: Role) -> str:
    """The name of a model, replaced by its folder where it is shipped or fetched. Raises ValueError if it is yet to be
    fetched, or no draft of this name is shipped."""
    if name in FETCHED:
        return str(fetched_folder(name) if role == "target" else _shipped_draft(name))
    return str(_SHIPPED / _FOLDERS[name][role]) if name in _FOLDERS else name


def _shipped_draft(name: str) -> Path:
    folder = DISTILLED_DRAFTS / name
    if not folder.is_dir():
        raise ValueError(
            f"no draft for {name} is shipped: train one (specbranch pair train {name}-draft --output-dir NEW) and name its "
            "folder NEW/draft, or draft without a model (--draft prompt_lookup)."
        )
    return folder


def resolve_predictor(name: str) -> str:
    """The folder of an H-RAD predictor: `embedded` is the shipped one; an empty name, for none, stays empty."""
    return str(_SHIPPED / "hrad") if name == EMBEDDED else name


def parse_model(name: str | Path) -> Lookup | RandomShape | str | Path:
    """What a name without `embedded` stands for; a folder or id comes back as it is. Raises ValueError for bad settings.

    >>> parse_model("prompt_lookup:max_ngram=4,min_ngram=2")
    Lookup(max_ngram=4, min_ngram=2)
    >>> parse_model("random:llama-3.1-8b")
    RandomShape(shape_name='llama-3.1-8b')
    >>> parse_model("Qwen/Qwen3-0.6B")
    'Qwen/Qwen3-0.6B'
    """
    kind, colon, rest = str(name).partition(":")
    if kind == _LOOKUP:
        return _parse_lookup(str(name), rest)
    return RandomShape(rest) if kind == _RANDOM and colon else name


def check_drafter(policy: Policy, draft: str | None) -> None:
    """Refuse the policy that speaks of a lookup beside a model, whose confidences it would misread.

    draft: None where it is not known, as in a trace that no models made; then nothing is refused.
    """
    if isinstance(policy, PromptLookup) and draft is not None and not isinstance(parse_model(draft), Lookup):
        raise ValueError(
            f"the policy prompt_lookup needs a draft that looks tokens up, but the draft is {draft}; "
            "record with --draft prompt_lookup."
        )


def _parse_lookup(name: str, settings: str) -> Lookup:
    values: dict[str, int] = {}
    for part in filter(None, settings.split(",")):
        key, _, value = part.partition("=")
        if key not in Lookup.__dataclass_fields__ or not value.isdecimal():
            raise ValueError(f"draft {name!r}: {part!r} is not a setting; write prompt_lookup:max_ngram=3,min_ngram=1.")
        if key in values:
            raise ValueError(f"draft {name!r}: {key} is given twice; which one is meant?")
        values[key] = int(value)
    return Lookup(**values)
