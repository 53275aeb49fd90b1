"""Loading: what works, and the one line that says why something does not."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from executor.models.engines.hugging_face import HuggingFaceEngine
from executor.models.engines.static import StaticEngine
from executor.models.loading import check_vocabularies, eos_token_ids, fingerprint, load_tokenizer
from executor.models.settings import EngineKind
from executor.models.sources.base import ModelError
from executor.resident.engine import ResidentEngine
from tests.settings import load

WORDS = ["<start>", "<end>", *(f"w{i}" for i in range(18))]


def save_model(folder: Path, *, vocab_size: int = 20, words: list[str] = WORDS, layers: int = 1, seed: int = 0) -> Path:
    """A tiny Llama with a word tokenizer, as save_pretrained leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<start>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return save_model(folder / "target", layers=2), save_model(folder / "draft", seed=1)


CLASSES = {
    EngineKind.STATIC: StaticEngine,
    EngineKind.HUGGING_FACE: HuggingFaceEngine,
    EngineKind.RESIDENT: ResidentEngine,
}


@pytest.mark.parametrize("kind", list(EngineKind))
def test_a_pair_loads_on_either_engine(pair: tuple[Path, Path], kind: EngineKind) -> None:
    target, draft = (load(path, engine=kind.value, dtype="float32", capacity=32) for path in pair)
    assert check_vocabularies(*pair).size == target.vocab_size == draft.vocab_size == 20
    assert isinstance(target, CLASSES[kind])
    assert (target.num_layers, draft.num_layers) == (2, 1)
    assert target.capacity == 32
    assert eos_token_ids(pair[0]) == (1,)
    assert load_tokenizer(pair[0]).get_vocab()["w3"] == 5
    with torch.inference_mode():
        expected = LlamaForCausalLM.from_pretrained(pair[0])(torch.tensor([[3, 4, 5]])).logits[0]
    torch.testing.assert_close(target.extend([3, 4, 5]), expected, atol=1e-5, rtol=0)


def test_capacity_defaults_to_what_the_model_knows(pair: tuple[Path, Path]) -> None:
    assert load(pair[1]).capacity == 64


def test_end_tokens_come_from_the_generation_config_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(pair[0], tmp_path / "several")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert eos_token_ids(folder) == (1, 7)
    (folder / "generation_config.json").unlink()
    assert eos_token_ids(folder) == (1,)


def test_an_architecture_that_static_does_not_know_falls_back_with_both_names(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=32)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"static engine cannot run .*gpt2.* runs on the hugging_face engine"):
        engine = load(tmp_path)
    assert isinstance(engine, HuggingFaceEngine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to warn of: it is what was asked for
        assert isinstance(load(tmp_path, engine="hugging_face"), HuggingFaceEngine)
    with pytest.raises(ModelError, match=r"resident engine cannot run .*gpt2"):
        load(tmp_path, engine="resident")


def test_padded_heads_are_cut_to_the_common_prefix_and_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    padded = save_model(tmp_path, vocab_size=32)
    with pytest.warns(UserWarning, match=r"32\) and .*\(20\) are padded differently: both are cut to 20 tokens"):
        size = check_vocabularies(padded, pair[1]).size
    assert size == 20
    shapes = [load(path, capacity=16, vocab_size=size).extend([2]).shape for path in (padded, pair[1])]
    assert shapes == [(1, 20), (1, 20)]


def test_different_vocabularies_are_refused_before_weights_are_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save_model(tmp_path, words=[*WORDS[:-1], "other"])
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"different vocabularies .* 2 of them not the same, for example 'other'"):
        check_vocabularies(pair[0], other)


def test_a_head_smaller_than_its_tokenizer_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 12 tokens, fewer than the 20 of its tokenizer"):
        check_vocabularies(pair[0], save_model(tmp_path, vocab_size=12))


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no model folder at"),
        (_without("config.json"), "is not a model folder: it has no config.json"),
        (_without("model.safetensors"), "weights of .* cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x01" * 99), "weights of .* cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "config of .* cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "weights of .* cannot be loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore:the static engine cannot run")
def test_a_damaged_folder_is_one_clear_line(pair: tuple[Path, Path], tmp_path: Path, damage: Any, message: str) -> None:
    folder = shutil.copytree(pair[1], tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_tensors_are_not_made_up(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(pair[1], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks 18 weights, for example model.layers.1"):
        load(folder)


def test_a_missing_tokenizer_is_one_clear_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(pair[1], tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"engine": "eager"}, "unknown engine 'eager': choose static or hugging_face"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"capacity": 65}, "knows 64 positions, so a capacity of 65 cannot be filled"),
        ({"capacity": 0}, "capacity must be at least 1"),
        ({"vocab_size": 21}, "whose head has 20 tokens"),
    ],
)
def test_impossible_settings_are_one_clear_line(pair: tuple[Path, Path], setting: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(pair[1], **setting)


def test_a_device_that_is_not_there_is_said(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="sees no CUDA device"):
        load(pair[1], device="cuda")


def test_a_fingerprint_names_the_weights_and_not_the_place(pair: tuple[Path, Path], tmp_path: Path) -> None:
    copied = shutil.copytree(pair[0], tmp_path / "elsewhere")
    assert fingerprint(copied) == fingerprint(pair[0]) != fingerprint(pair[1])
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert fingerprint(copied) == fingerprint(pair[0])
    (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert fingerprint(copied) != fingerprint(pair[0])
    weights = (pair[0] / "model.safetensors").read_bytes()
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert fingerprint(copied) != fingerprint(pair[0])


def test_a_large_file_is_sampled(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.models.sources.hugging_face._WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr("executor.models.sources.hugging_face._SAMPLE_BYTES", 8)
    copied = shutil.copytree(pair[0], tmp_path / "elsewhere")
    weights = (copied / "model.safetensors").read_bytes()
    assert fingerprint(copied) == fingerprint(pair[0])
    (copied / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))  # the end is always seen
    assert fingerprint(copied) != fingerprint(pair[0])


def test_a_model_that_does_not_fit_says_so(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_arguments: Any, **_settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("executor.models.sources.hugging_face.StaticEngine", too_large)
    with pytest.raises(ModelError, match=r"cache of 64 positions does not fit the memory of cpu: lower the capacity"):
        load(pair[1])
