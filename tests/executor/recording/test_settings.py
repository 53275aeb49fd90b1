"""Settings of a run: nested when they are written, and flat ones of the first version still understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from executor.models.settings import EngineKind, EngineSettings, PairSettings, Transport
from executor.recording.settings import (
    DecodingSettings,
    PromptForm,
    PromptSettings,
    RecordSettings,
    config_of,
    draft_of,
    read_settings,
)

VERSION_1 = Path(__file__).parents[2] / "data" / "run_v1"
UNUSUAL = RecordSettings(
    pair=PairSettings(
        target="some/target",
        draft="prompt_lookup",
        engine=EngineSettings(kind=EngineKind.HUGGING_FACE, device="cuda:1", dtype="float16", capacity=77),
        target_device="cuda:2",
        transport=Transport.DISTRIBUTED,
        is_pinned=False,
        timeout_s=3.5,
        hrad="embedded",
        verify_width=8,
        draft_sms=4,
    ),
    decoding=DecodingSettings(
        policies=("autoregressive", "prompt_lookup"),
        temperatures=(0.7,),
        top_k=5,
        top_p=0.5,
        max_new_tokens=9,
        seed=3,
        stop_strings=("a\n",),
        ignore_eos=True,
        acceptance="geometric:alpha=0.5",
    ),
    prompts=PromptSettings(source="x.jsonl", num=2, skip=1, form=PromptForm.RAW),
    repeats=2,
    aligns=False,
    tail_depth=4,
)
FLAT = {
    "target": "some/target",
    "draft": "prompt_lookup",
    "policies": ["autoregressive", "prompt_lookup"],
    "temperatures": [0.7],
    "top_k": 5,
    "top_p": 0.5,
    "prompts": "x.jsonl",
    "num_prompts": 2,
    "skip_prompts": 1,
    "max_new_tokens": 9,
    "repeats": 2,
    "seed": 3,
    "stop_strings": ["a\n"],
    "ignore_eos": True,
    "tail_depth": 4,
    "aligns": False,
    "engine": "hugging_face",
    "device": "cuda:1",
    "target_device": "cuda:2",
    "transport": "distributed",
    "dtype": "float16",
    "capacity": 77,
    "is_pinned": False,
    "timeout_s": 3.5,
    "hrad": "embedded",
    "verify_width": 8,
    "draft_sms": 4,
    "acceptance": "geometric:alpha=0.5",
}


def test_what_is_written_is_read_back() -> None:
    written = yaml.safe_load(yaml.safe_dump(config_of(UNUSUAL)))
    assert read_settings(written) == UNUSUAL
    assert read_settings({**written, "sweep": {"num_steps": 4}}) == UNUSUAL
    assert read_settings(config_of(RecordSettings())) == RecordSettings()


def test_every_flat_setting_of_the_first_version_has_its_place() -> None:
    assert read_settings(FLAT) == UNUSUAL
    assert read_settings({"draft": "embedded_small"}) == RecordSettings(pair=PairSettings(draft="embedded_small"))


def test_a_run_of_the_first_version_says_what_made_it() -> None:
    config = yaml.safe_load((VERSION_1 / "config.yaml").read_text())
    settings = read_settings(config)
    assert settings is not None
    assert settings.decoding.policies == tuple(config["policies"])
    assert settings.pair.hrad == config["hrad"]
    assert draft_of(config) == draft_of(config_of(settings)) == settings.pair.draft == "embedded"


def test_a_run_that_no_models_made_has_no_such_settings() -> None:
    assert read_settings({"policy": "pearl", "seed": 0}) is None
    assert draft_of({"policy": "pearl", "seed": 0}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": "embedded", "transport": "pigeon"}, r"run/config.yaml: .*pair.transport"),
        ({"pair": {"engine": {"capacity": "many"}}}, r"pair.engine.capacity"),
        ({"pair": {}, "repeats": 0}, r"repeats must be at least 1, but got 0"),
        ({"pair": {"engine": {"dtype": "int8"}}}, "unknown dtype 'int8'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(config, where="run/config.yaml")
    assert "\n" not in str(caught.value)


def test_prompts_of_runs_before_there_was_a_choice_stand_as_they_are() -> None:
    config = config_of(RecordSettings())
    assert config["prompts"].pop("form") == "auto"
    settings = read_settings(config)
    assert settings is not None
    assert settings.prompts.form is PromptForm.RAW
