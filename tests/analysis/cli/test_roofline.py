"""From shapes and a data sheet to a study: the roofline command, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoConfig, LlamaConfig

from analysis.explore.inputs import read_latency, write_roofline
from analysis.study.planned import Planned, shape_of_model
from sim.decoding.closed_forms import sps_speedup
from sim.decoding.model_shapes import named_shape
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.schema import OpKind

PLANNED = Planned(target="llama-3.1-70b", draft="llama-3.2-1b", num_devices=4)


def test_a_pair_nobody_ran_is_explored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "new" / "planned.json", write_run(tmp_path / "run", num_requests=60, num_tokens=120)
    pair = ("--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--num-devices", "4", "--host-us", "0")
    assert call("roofline", "--output", str(file), *pair) == 0
    told = capsys.readouterr().out
    assert "4 x h100" in told
    assert "--placement shared_device" in told
    options = [
        "--run",
        str(run),
        "--calibration",
        str(file),
        "--alignment",
        "geometric:alpha=0.8",
        "--temperature",
        "1",
    ]
    policies = [f"fixed_length:draft_length={length}" for length in (2, 4, 8)]
    flags = [word for policy in policies for word in ("--policy", policy)]
    assert call("explore", "--output-dir", str(tmp_path / "e"), *options, *flags) == 0
    table = pd.read_parquet(tmp_path / "e" / "results.parquet").set_index("policy")
    latency = PLANNED.latency()
    ratio = latency.mean_array("verify", 1, 1, 160) / latency.mean_array("draft", 1, 1, 160)
    for policy, length in zip(policies, (2, 4, 8), strict=True):
        expected = float(sps_speedup(0.8, length, ratio))  # flat verification, as the bytes bind
        assert table.speedup[policy] == pytest.approx(expected, rel=0.06), policy
    effects = json.loads((tmp_path / "e" / "summary.json").read_text())["exploration"]["sensitivity"]
    assert {effect["group"] for effect in effects} <= {"draft", "verify", "host"}
    assert call("roofline", "--output", str(file), *pair) == 1
    assert "exists already" in capsys.readouterr().err


def test_settings_reach_the_file(tmp_path: Path) -> None:
    def base_s(kind: OpKind, **settings: object) -> float:
        file = tmp_path / "one.json"
        file.unlink(missing_ok=True)
        flags = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
        assert call("roofline", "--output", str(file), "--target", "llama-3.1-8b", "--draft", "llama-68m", *flags) == 0
        return float(read_latency(file).mean_array(kind, 1, 1, 0))

    assert base_s(OpKind.HOST, host_us=70) == pytest.approx(7e-5)
    idle = base_s(OpKind.VERIFY, layer_us=0)
    assert base_s(OpKind.VERIFY, layer_us=10) - idle == pytest.approx(32 * 1e-5)
    assert base_s(OpKind.VERIFY, layer_us=0, bits=4) == pytest.approx(idle / 4, rel=1e-3)
    assert base_s(OpKind.VERIFY, layer_us=0, bandwidth_share=0.45) == pytest.approx(2 * idle, rel=1e-6)
    assert base_s(OpKind.VERIFY, layer_us=0, hardware="h200") == pytest.approx(idle * 3.35 / 4.8, rel=1e-6)
    assert base_s(OpKind.DRAFT, layer_us=0, draft_hardware="l4") == pytest.approx(
        base_s(OpKind.DRAFT, layer_us=0) * 3.35 / 0.3, rel=1e-6
    )


def test_a_file_holds_the_very_latencies(tmp_path: Path) -> None:
    write_roofline(PLANNED.latency(), tmp_path / "planned.json")
    assert read_latency(tmp_path / "planned.json") == PLANNED.latency()
    text = (tmp_path / "planned.json").read_text()
    for wrong, message in (
        (text.replace('"host_s": 0.0005', '"host_s": -1'), "is not a roofline: .*host_s must be at least 0"),
        (text.replace('"kind": "roofline"', '"kind": "magic"'), "is no"),
        ("{", "is no"),
    ):
        assert wrong != text
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_latency(tmp_path / "wrong.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_devices": 1}, "the pair needs 144 GB with 1024 tokens"),
        ({"num_devices": 1, "draft_hardware": "l4"}, "the target needs 141 GB"),
        ({"hardware": "abacus"}, "no device is called 'abacus'"),
        ({"target": "llama-9"}, "no model shape is called 'llama-9'; choose one of"),
        ({"bits": 0.0}, "more than 0 and at most 64 bits"),
        ({"context_tokens": 0}, "at least 1 token"),
    ],
)
def test_impossible_plans_are_one_clear_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planned(**{"target": "llama-3.1-70b", "draft": "llama-3.2-1b", "num_devices": 4, **settings}).latency()  # type: ignore[arg-type]


def test_a_folder_gives_its_shape(tmp_path: Path) -> None:
    llama = named_shape("llama-3.2-1b")
    LlamaConfig(
        num_hidden_layers=llama.num_layers,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.intermediate_size,
        num_attention_heads=llama.num_heads,
        num_key_value_heads=llama.num_kv_heads,
        head_dim=llama.head_dim,
        vocab_size=llama.vocab_size,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    found = shape_of_model(str(tmp_path))
    assert (found.num_parameters, found.kv_numbers) == (llama.num_parameters, llama.kv_numbers)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match=r"no shape can be read of .*T5"):
        shape_of_model(str(tmp_path))


GEMMA2_9B = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": None,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("kind", "settings", "held", "active", "kv_numbers"),
    [
        ("mixtral", {}, 46.70, 12.75, 2 * 32 * 8 * 128),  # 8x7B; without its embedding, of which a row is read
        ("gemma2", GEMMA2_9B, 9.242, 9.242, 2 * 42 * 8 * 256),
        ("phi3", {"sliding_window": None}, 3.821, 3.722, 2 * 32 * 32 * 96),
        ("llama", {"rope_parameters": DYNAMIC}, 6.738, 6.607, 2 * 32 * 32 * 128),
        ("gpt2", {}, 0.1244, 0.1236, 2 * 12 * 12 * 64),
    ],
)
def test_any_folder_gives_its_shape(
    tmp_path: Path, kind: str, settings: dict[str, object], held: float, active: float, kv_numbers: int
) -> None:
    """Billions of weights as published, held and multiplied with a token."""
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    shape = shape_of_model(str(tmp_path))
    assert shape.num_parameters == pytest.approx(1e9 * held, rel=1e-3)
    assert shape.num_active == pytest.approx(1e9 * active, rel=3e-3)
    assert shape.kv_numbers == kv_numbers
    planned = Planned(target=str(tmp_path), draft=str(tmp_path), num_devices=4).latency()
    write_roofline(planned, tmp_path / "planned.json")
    assert read_latency(tmp_path / "planned.json") == planned


def test_more_tokens_read_more_experts(tmp_path: Path) -> None:
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path)
    shape = shape_of_model(str(tmp_path))
    assert shape.counts is not None
    dense = shape.counts.step - shape.counts.experts
    shares = (shape.num_read([1, 2, 1000]) - dense) / shape.counts.experts
    assert shares == pytest.approx([2 / 8, 1 - (6 / 8) ** 2, 1.0])
    latency = Planned(target=str(tmp_path), draft="llama-68m", num_devices=4, layer_s=0.0).latency()
    one, two = latency.mean_array(OpKind.VERIFY, [1, 2], 1, 0)
    assert two / one == pytest.approx(float(shape.num_read(2) / shape.num_read(1)), rel=1e-4)


def test_a_sliding_window_is_named(tmp_path: Path) -> None:
    AutoConfig.for_model("phi3", sliding_window=2047).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="window of 2047"):
        shape_of_model(str(tmp_path))
