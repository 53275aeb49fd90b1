"""GGUF files as models: their dequantised values, their texts' tokens, and one line for what cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from executor.models.loading import fingerprint, load_engine, load_tokenizer
from executor.models.settings import EngineSettings
from executor.models.sources.base import ModelError
from executor.models.stored import gguf_files
from executor.models.stored.gguf_files import dequantised_folder
from executor.models.stored.places import CACHE_VARIABLE, read_card
from tests.executor.models.files.gguf_builder import llama, write_gguf
from tests.executor.models.tiny_models import logits_without_cache

TOKENS = [5, 70, 258, 9, 9, 31, 120]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.filterwarnings("ignore:model.gguf")
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_a_gguf_file_gives_the_logits_of_its_dequantised_values(kind: str, is_tied: bool, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "model.gguf", llama(is_tied=is_tied), kind)
    engine = load_engine(tmp_path / "model.gguf", EngineSettings(capacity=64))
    expected = logits_without_cache(model, TOKENS)
    assert (engine.extend(TOKENS) - expected).abs().max().item() < 2e-5 * expected.abs().max().item()


def test_what_was_lost_is_said_and_only_where_something_was(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", llama(), "Q4_1")
    with pytest.warns(UserWarning, match=r"^small.gguf: 16 of 21 tensors were stored quantised \(16 as Q4_1\)"):
        folder = dequantised_folder(tmp_path / "small.gguf")
    assert read_card(folder).tensor_types == {"Q4_1": 16, "F32": 5}
    write_gguf(tmp_path / "whole.gguf", llama(), "F16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_card(dequantised_folder(tmp_path / "whole.gguf")).loss


def test_the_same_bytes_are_dequantised_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "a.gguf", llama())
    folder = dequantised_folder(tmp_path / "a.gguf")
    assert folder.parent == cache / "gguf"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.gguf").rename(tmp_path / "elsewhere" / "a.gguf")
    monkeypatch.setattr(gguf_files, "write_model", None)
    assert dequantised_folder(tmp_path / "elsewhere" / "a.gguf") == folder
    assert fingerprint(tmp_path / "elsewhere" / "a.gguf") == fingerprint(folder)


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("smollm", "ab  12", ["ab", "ĠĠ", "1", "2"]),
        ("gpt-2", "ab  12", ["ab", "Ġ", "Ġ", "1", "2"]),
        ("qwen2", "ab  12", ["ab", "Ġ", "Ġ", "1", "2"]),
        ("smollm", "abc  ab", ["abc", "Ġ", "Ġ", "ab"]),
    ],
)
def test_texts_are_split_as_the_file_says(split: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(), split=split)
    tokenizer = load_tokenizer(tmp_path / "model.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template.endswith("<|end|>")


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama(), split="klingon")
    with pytest.warns(UserWarning, match="'klingon' says, which is not known here"):
        dequantised_folder(tmp_path / "model.gguf")


def _cut(path: Path, num_bytes: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(num_bytes)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no GGUF file at"),
    "empty": (lambda path: path.write_bytes(b""), "not a GGUF file that can be read"),
    "text": (lambda path: path.write_text("hello " * 100), "not a GGUF file that can be read"),
    "cut in its header": (lambda path: (write_gguf(path, llama()), _cut(path, 700)), "not a GGUF file"),
    "cut in its tensors": (
        lambda path: (write_gguf(path, llama()), _cut(path, path.stat().st_size - 5000)),
        "not a GGUF file",
    ),
    "one of many": (lambda path: write_gguf(path, llama(), num_parts=3), "one of 3 parts: merge them"),
    "a tensor short": (
        lambda path: write_gguf(path, llama(), omits="blk.1.ffn_up"),
        r"lacks 1 weights, for example model.layers.1.mlp.up_proj.weight: is the file complete",
    ),
    "other architecture": (
        lambda path: write_gguf(path, llama(), architecture="perceptron"),
        "architecture perceptron",
    ),
    "no tokenizer": (lambda path: write_gguf(path, llama(), has_tokenizer=False), "tokenizer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_model_is_refused_in_one_line(case: str, tmp_path: Path, cache: Path) -> None:
    make, said = BROKEN[case]
    make(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=said) as refused:
        load_engine(tmp_path / "model.gguf", EngineSettings(capacity=64))
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "model.gguf") in str(refused.value)
    assert not list(cache.glob("gguf/*"))  # nothing half made is left


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    model = llama()
    model.model.norm.weight.data = torch.ones(32)
    write_gguf(tmp_path / "model.gguf", model)
    with pytest.raises(ModelError, match=r"model.norm.weight has the shape \(32,\) where its config asks for \(64,\)"):
        dequantised_folder(tmp_path / "model.gguf")
