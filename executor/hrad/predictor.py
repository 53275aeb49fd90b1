"""The H-RAD predictor: a three-layer perceptron over target features, its card, and how both are stored.

A predictor belongs to one pair: its labels depend on the draft, its inputs on the target. The card names both by
fingerprint, and a predictor is refused anywhere else. Weights are safetensors: reading them runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from executor.hrad.features import class_inputs
from executor.models.engines.base import Engine
from executor.models.loading import fingerprint
from executor.models.names import resolve_predictor
from sim.decoding.policies.base import Policy, why_other_window
from sim.decoding.policies.catalog import label_of
from traces.files import whole_file, write_text
from traces.mistakes import parse_json

SCHEMA_VERSION = 1
CLASS_NAMES = ("reject", "confidence", "accept")
FILE_MODE = 0o644
WEIGHTS_NAME, CARD_NAME = "predictor.safetensors", "predictor.json"


class HradError(ValueError):
    """A predictor or its data cannot be used here. One line: what, where, what to do."""


@dataclass(frozen=True, kw_only=True)
class PredictorCard:
    """What a predictor was made for and from.

    draft_length: gamma of the labels: class 2 means that all of so many drafted tokens are accepted.
    num_feature_layers: K. widths: of the two hidden layers. prompt_keys: hashes of the prompts it was trained on, of
    which held_back_keys only stopped the training and calibrated the result; metrics: on these.
    is_calibrated: False when the outputs are those of balanced classes, as class-weighted training leaves them.
    """

    target_fingerprint: str
    draft_fingerprint: str
    draft_length: int
    num_feature_layers: int
    hidden_size: int
    embedding_size: int
    widths: tuple[int, int]
    temperatures: tuple[float, ...]
    num_positions: int
    prompt_keys: tuple[str, ...]
    held_back_keys: tuple[str, ...] = ()
    is_calibrated: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def num_inputs(self) -> int:
        """Width of the first layer, from the target's shape."""
        return self.num_feature_layers * self.hidden_size + self.embedding_size


def make_network(num_inputs: int, widths: tuple[int, int], dropout: float) -> nn.Sequential:
    """Linear-ReLU-Dropout twice, then Linear to the three classes."""
    return nn.Sequential(
        nn.Linear(num_inputs, widths[0]),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(widths[0], widths[1]),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(widths[1], len(CLASS_NAMES)),
    )


class Predictor:
    """Class probabilities from features; float32 whatever the stored precision."""

    def __init__(self, card: PredictorCard, network: nn.Sequential, device: torch.device | str = "cpu") -> None:
        self.card = card
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        # Inputs stand in rows, so weights are kept as (inputs, outputs): the layout that one row is fastest in.
        self._layers = [
            (
                layer.bias.detach().to(device, torch.float32),
                layer.weight.detach().to(device, torch.float32).t().contiguous(),
            )
            for layer in layers
        ]

    def __call__(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """(n, K, hidden), (n, embedding) -> (n, 3): chances that none, some, all of draft_length are accepted."""
        return self.from_inputs(class_inputs(features, embeddings))

    def from_inputs(self, inputs: Tensor) -> Tensor:
        """(n, num_inputs), as `class_inputs` makes them, -> (n, 3)."""
        (first_bias, first), (second_bias, second), (last_bias, last) = self._layers
        hidden = torch.addmm(first_bias, inputs, first).relu_()
        hidden = torch.addmm(second_bias, hidden, second).relu_()
        return functional.softmax(torch.addmm(last_bias, hidden, last), dim=-1)

    def check_engine(self, engine: Engine) -> None:
        """Raise HradError for a target of another shape."""
        hidden_size, embedding_size = engine.hidden_size, int(engine.embed([0]).shape[1])
        if (hidden_size, embedding_size) != (self.card.hidden_size, self.card.embedding_size) or (
            self.card.num_feature_layers > engine.num_layers
        ):
            raise HradError(
                f"the H-RAD predictor reads {self.card.num_feature_layers} blocks of {self.card.hidden_size} units and "
                f"embeddings of {self.card.embedding_size}, but the target has {engine.num_layers} blocks of "
                f"{hidden_size} and embeddings of {embedding_size}; train one for this pair (specbranch hrad collect, train)."
            )


def check_pair(card: PredictorCard, target: str | Path, draft: str | Path) -> None:
    """Raise HradError for a predictor that was trained for another target or draft."""
    pairs = (("target", target, card.target_fingerprint), ("draft", draft, card.draft_fingerprint))
    for role, path, wanted in pairs:
        given = fingerprint(path)
        if given != wanted:
            raise HradError(
                f"this H-RAD predictor was trained for another {role} ({wanted[:12]}) than {path} ({given[:12]}); "
                "train one for this pair (specbranch hrad collect, then hrad train), or run without a predictor."
            )


def predicted_window(hrad: str | Path) -> int:
    """How many draft tokens the classes of a named predictor speak of; 0 where no predictor is named."""
    return read_card(resolve_predictor(str(hrad))).draft_length if hrad else 0


def check_classes(policy: Policy, class_window: int) -> None:
    """Raise HradError for a policy that reads H-RAD's classes where nothing predicts them, or predicts them of another window.

    class_window: `predicted_window`.
    """
    if policy.needs.classes and not class_window:
        raise HradError(
            f"{policy} reads H-RAD's classes, but no predictor is loaded: record with --hrad (`embedded` is the shipped "
            "pair's), train one with specbranch hrad, or choose a policy without classes."
        )
    if why := why_other_window(policy.needs, class_window):
        raise HradError(f"{label_of(policy)}: {why}")


def save_predictor(folder: str | Path, card: PredictorCard, network: nn.Sequential) -> None:
    """Write weights (float16) and card. The folder may exist, an earlier predictor in it is replaced.

    Raises HradError for weights that float16 cannot hold.
    """
    folder = Path(folder)
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in network.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise HradError("the trained weights do not fit float16; train again with a lower learning rate.")
    with whole_file(folder / WEIGHTS_NAME) as place:
        save_file(state, place)
        place.chmod(FILE_MODE)  # safetensors writes for the owner alone
    write_text(folder / CARD_NAME, json.dumps(asdict(card), indent=2) + "\n")


def read_card(folder: str | Path) -> PredictorCard:
    """The card alone; no weight is read. Raises HradError where there is none, or one that cannot be read."""
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise HradError(f"no H-RAD predictor at {folder}: it has no {CARD_NAME}; give a folder that hrad train wrote.")
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        card = TypeAdapter(PredictorCard).validate_python(raw) if version == SCHEMA_VERSION else None
    except (OSError, ValueError) as error:
        raise HradError(f"cannot read {path}: {str(error).splitlines()[0]}; train the predictor again.") from error
    if card is None:
        raise HradError(f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}; train it again.")
    return card


def load_predictor(folder: str | Path, device: torch.device | str = "cpu") -> Predictor:
    """A stored predictor on a device. Raises HradError where it cannot be read, or its weights do not fit its card."""
    card, path = read_card(folder), Path(folder) / WEIGHTS_NAME
    network = make_network(card.num_inputs, card.widths, dropout=0.0)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise HradError(f"cannot read the weights {path} ({reason}); copy or train the predictor again.") from error
    return Predictor(card, network, device)
