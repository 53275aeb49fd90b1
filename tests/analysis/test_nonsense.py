"""Nonsense is refused before any work starts, by a line that names the setting or the file and the value seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.study.study import StudyError, read_study
from executor.models.settings import EngineSettings, PairSettings
from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings
from sim.decoding.policies.catalog import PolicyError, parse_policy
from tests.analysis.made_up_run import write_run
from traces.fits.calibration import Calibration, calibrate
from traces.folder.run import RunError, read_run
from traces.schema import Sampling

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Sampling(NAN), "temperature.*nan"),
        (lambda: Sampling(INF), "temperature.*inf"),
        (lambda: Sampling(-1.0), "temperature.*-1"),
        (lambda: Sampling(1e-45), "temperature.*1e-45"),
        (lambda: Sampling(1e-10), "temperature.*1e-10"),
        (lambda: Sampling(1e30), "temperature"),
        (lambda: Sampling(1.0, -1), "top_k"),
        (lambda: Sampling(1.0, 0, NAN), "top_p"),
        (lambda: DecodingSettings(temperatures=()), "temperatures is empty"),
        (lambda: DecodingSettings(temperatures=(0.7, 1.0, 0.7)), "temperature 0.7 is given twice"),
        (lambda: DecodingSettings(policies=("probe", "probe")), "policy probe is given twice"),
        (lambda: DecodingSettings(policies=()), "policies is empty"),
        (lambda: DecodingSettings(seed=-1), "seed.*-1"),
        (lambda: DecodingSettings(seed=1 << 64), "seed"),
        (lambda: DecodingSettings(max_new_tokens=0), "max_new_tokens.*0"),
        (lambda: DecodingSettings(max_new_tokens=1 << 40), "max_new_tokens"),
        (lambda: DecodingSettings(stop_strings=("",)), "stop string"),
        (lambda: PromptSettings(num=0), "num_prompts"),
        (lambda: PromptSettings(skip=-1), "skip_prompts"),
        (lambda: PromptSettings(num=4, num_timed=5), r"timed_prompts.*\[1, 4\].*5"),
        (lambda: PromptSettings(num_timed=0), "timed_prompts.*0"),
        (lambda: RecordSettings(tail_depth=-1), "tail_depth.*-1"),
        (lambda: RecordSettings(tail_depth=10**9), "tail_depth"),
        (lambda: RecordSettings(repeats=0), "repeats"),
        (lambda: PairSettings(verify_width=-1), "verify_width"),
        (lambda: PairSettings(draft_sms=-8), "draft_sms"),
        (lambda: PairSettings(timeout_s=NAN), "timeout_s"),
        (lambda: EngineSettings(capacity=0), "capacity"),
        (lambda: EngineSettings(dtype="float8"), "float8"),
    ],
)
def test_settings_are_checked_when_they_are_made(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("fixed_length:draft_length=3,draft_length=5", "draft_length is given twice"),
        ("fixed_length:draft_length=100000", "draft_length.*100000"),
        ("outcome_hedging:max_branches=1000000000", "max_branches.*1000000000"),
        ("saguaro:fan_out=1000,draft_length=1000", "fan_out"),
        ("probe:max_length=99999", "max_length"),
        ("confidence_stop:threshold=nan", "threshold"),
        ("confidence_stop:threshold=1e9", "threshold.*1"),
        ("product_rule:slope=inf", "slope"),
        ("outcome_hedging:least_reach=nan", "least_reach"),
        ("specbranch:epsilon=nan", "epsilon"),
        ("adaedl:step=-inf", "step"),
        ("adaedl:rate_memory=2", r"rate_memory must lie in \[0, 1\], but got 2"),
        ("adaedl:target_rate=-0.5", "target_rate"),
        ("confidence_stop:threshold=-1", r"threshold must lie in \[0, 1\], but got -1"),
        ("confidence_stop:threshold=-1,signal=margin", r"threshold must lie in \[0, 10000\]"),
        ("confidence_stop:threshold=0.2,signal=negative_entropy", r"threshold must lie in \[-10000, 0\]"),
        ("product_rule:threshold=1.5", "threshold"),
        ("specbranch:epsilon=2", "epsilon.*2"),
        ("outcome_hedging:least_acceptance=-0.1", "least_acceptance"),
        ("outcome_hedging:slope=nan", r"slope must lie in \[-10000, 10000\], but got nan"),
    ],
)
def test_policies_have_limits(label: str, named: str) -> None:
    with pytest.raises(PolicyError, match=named) as refusal:
        parse_policy(label)
    assert len(str(refusal.value)) < 300


TEXTS = {
    "empty": "",
    "list": "- a\n- b\n",
    "text": "hello",
    "number": "5",
    "open": "policies: [",
    "deep": "a: " + "[" * 50_000,
    "deep mapping": "{a: " * 5_000,
    "bool tag": "seed: !!bool",
    "int tag": "seed: !!int x",
    "float tag": "seed: !!float ''",
    "timestamp": "2020-13-45",
    "date tag": "seed: 2020-99-99",
    "object": "seed: !!python/object/apply:os.system ['true']",
    "unhashable": "{[a]: b, {c: d}: e}",
    "anchor": "a: *b",
    "nul": "a: \0",
    "binary": "a: !!binary x",
    "twice": "seed: 1\nseed: 2",
    "twice inside": "pair: {target: a, target: b}",
    "large": "a: " + "x" * (5 << 20),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_settings_files_that_are_none_are_refused_by_name(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", num_requests=1, num_tokens=4)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml") as refusal:
        read_run(folder)
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"study\.yaml") as second:
        read_study(tmp_path / "study.yaml")
    for message in (str(refusal.value), str(second.value)):
        assert "\n" not in message
        assert len(message) < 600


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(read_run(write_run(tmp_path_factory.mktemp("runs") / "run", num_requests=4)))


def _with(data: dict[str, Any], place: list[str | int], value: object) -> dict[str, Any]:
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["fits", "verify", "coefficients", 0], -1.0),
        (["fits", "verify", "coefficients", 0], NAN),
        (["fits", "verify", "coefficients", 1], INF),
        (["fits", "draft", "ratios", 0], NAN),
        (["fits", "draft", "ratios", 0], -0.5),
        (["fits", "draft", "coefficients"], []),
        (["drafting"], 0.0),
        (["interference", "target", "base"], NAN),
        (["interference", "draft", "base"], -1.0),
        (["interference", "draft", "more_rows"], INF),
        (["cold_start", "decay"], 2.0),
        (["cold_start", "first_s"], NAN),
        (["fits"], []),
        (["fits", "verify", "least"], "one"),
        (["fits", "verify", "least"], -3),
        (["fits", "verify", "coefficients", 0], 1e300),
        (["fits", "verify", "coefficients"], [0.0] * 8),
        (["fits", "verify", "intervals", 0, 0], NAN),
        (["fits", "verify", "intervals", 0], [1.0, 0.0]),
        (["fits", "verify", "error"], NAN),
        (["fits", "draft", "ratios"], [9.0]),
        (["fits", "draft", "ratios"], [0.0]),
        (["fits", "draft", "ratios"], [-1.0, 3.0]),
        (["fits", "verify", "widths"], [[-1, 1.0]]),
        (["fits", "verify", "widths"], [[8, 1.0], [1, 1.0]]),
        (["fits", "verify", "widths"], [[1, 1.0], [10**9, 1.0]]),
        (["fits", "verify", "widths"], [[1, -1.0]]),
        (["drafting"], 1e9),
        (["drift_range"], [NAN, 1.0]),
        (["drift_range"], [2.0, 1.0]),
        (["num_requests"], -1),
        (["interference", "prefill"], 0.0),
        (["cold_start", "full_s"], INF),
        (["round_check"], {"predicted_s": NAN, "measured_s": 1.0, "num_rounds": 3}),
    ],
)
def test_broken_calibrations_are_refused(
    tmp_path: Path, calibration: Calibration, place: list[str | int], value: object
) -> None:
    calibration.save(tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(_with(data, place, value)))
    with pytest.raises(ValueError, match=r"c\.json is not a calibration: ") as refusal:
        Calibration.load(tmp_path / "c.json")
    assert "\n" not in str(refusal.value)


def test_a_value_that_stands_twice_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    calibration.save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"drafting"', '"drafting": 2.0, "drafting"', 1))
    with pytest.raises(ValueError, match=r"c\.json is not a calibration: 'drafting' is given twice"):
        Calibration.load(tmp_path / "c.json")


def test_a_broken_calibration_cannot_be_made(calibration: Calibration) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        replace(calibration.fits["verify"], coefficients=(NAN,) * 8)
    with pytest.raises(ValueError, match="drafting"):
        replace(calibration, drafting=INF)
