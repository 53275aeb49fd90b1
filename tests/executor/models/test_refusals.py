"""Models that cannot be run right are refused by name, in one line and without a question."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from executor.models.loading import load_engine, load_tokenizer
from executor.models.names import resolve_model
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import ModelError

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def _save(folder: Path, kind: str, **settings: Any) -> str:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def _ropes(kind: str) -> dict[str, Any]:
    rope = {**LONGROPE, "factor": 4.0, "original_max_position_embeddings": 64}
    return {"rope_parameters": rope, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen2"])
@pytest.mark.parametrize("engine", list(EngineKind))
def test_longrope_is_refused_where_its_keys_would_change(tmp_path: Path, kind: str, engine: EngineKind) -> None:
    folder = _save(tmp_path / "model", kind, **_ropes(kind))
    with pytest.raises(ModelError, match=r"longrope.*capacity of at most 64"):
        load_engine(folder, EngineSettings(kind=engine, capacity=65))
    if engine is EngineKind.HUGGING_FACE:
        assert load_engine(folder, EngineSettings(kind=engine, capacity=None)).capacity == 64
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wanted = model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=40)[0, 3:].tolist()
        tokens = [5, 6, 7]
        line = load_engine(folder, EngineSettings(kind=engine, capacity=64))
        logits = line.extend(tokens, last_only=True)
        for _ in range(40):
            tokens.append(int(logits[-1].argmax()))
            logits = line.extend(tokens[-1:])
        assert tokens[3:] == wanted


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": True}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    ],
)
def test_alibi_is_refused_by_name(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    folder = _save(tmp_path / "model", kind, **settings)
    with pytest.raises(ModelError, match=f"{kind}.*ALiBi"):
        load_engine(folder, EngineSettings(kind=EngineKind.HUGGING_FACE, capacity=64))


def test_code_of_a_model_folder_is_never_run_and_nobody_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("embedded", "target"), folder)
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": maps}))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    for load in (lambda: load_engine(folder, EngineSettings()), lambda: load_tokenizer(folder)):
        with pytest.raises(ModelError, match="brings code of its own"):
            load()


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

open(r"MARK", "a").write("ran")


class Config(LlamaConfig):
    model_type = "own"


class Model(LlamaForCausalLM):
    config_class = Config

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.flip(-1)  # not what transformers' own class says
        return output
"""


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_code_of_a_model_folder_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """A class of its own, also under a type that the static engine knows: its tokens are those of its own forward."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, mark = tmp_path / f"model_{model_type}", tmp_path / "mark"
    shutil.copytree(resolve_model("embedded", "draft"), folder)
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoModelForCausalLM": "code.Model"} | ({"AutoConfig": "code.Config"} if model_type == "own" else {})
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": maps}))
    (folder / "code.py").write_text(CODE.replace("MARK", str(mark)))
    wary, trusting = EngineSettings(capacity=64), EngineSettings(capacity=64, trusts_remote_code=True)
    if model_type == "own":
        with pytest.raises(ModelError, match=r"code of its own.*--trust-remote-code"):
            load_engine(folder, wary)
    assert not mark.exists()
    plain = load_engine(resolve_model("embedded", "draft"), wary).extend([5, 6, 7])
    with pytest.warns(UserWarning, match="hugging_face"):
        engine = load_engine(folder, trusting)
    assert mark.exists()
    torch.testing.assert_close(engine.extend([5, 6, 7]), plain.flip(-1), atol=1e-4, rtol=1e-4)
    (folder / "code.py").write_text("raise RuntimeError('broken')  # of another length")
    with pytest.raises(ModelError, match=r"cannot be (read|loaded) \(broken\)"):
        load_engine(folder, trusting)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_a_pickle_that_holds_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("embedded", "target"), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Hostile()))
    with pytest.raises(ModelError, match=r"could run code|cannot be loaded") as refusal:
        load_engine(folder, EngineSettings())
    assert "weights_only" not in str(refusal.value)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "5", "null", '{"model_type": 5}', '{"model_type": []}', "[" * 100_000, "{"])
def test_a_config_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as refusal:
        load_engine(tmp_path, EngineSettings())
    assert "\n" not in str(refusal.value)
