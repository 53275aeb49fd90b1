"""Nonsense on the command line is refused before work starts: one line with the option, or the file, and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest

from tests.analysis.command import call
from tests.analysis.made_up_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", num_requests=2, num_tokens=20)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at two temperatures."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    return write_run(folder, num_requests=2, num_tokens=20, temperatures=(0.0, 1.0))


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are not loaded, and nothing is fitted or searched."""

    def started(*_: object, **__: object) -> NoReturn:
        raise AssertionError("work was started")

    for place in (
        "executor.pair.load_engine",
        "executor.pair.TargetClient",
        "executor.hrad.collection.load_engine",
        "analysis.explore.exploration.make_questions",
        "analysis.explore.simulation.predict",
        "analysis.papers.published.simulate_published",
        "analysis.explore.inputs.write_roofline",
    ):
        monkeypatch.setattr(place, started)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert call(*arguments) != 0
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert len(line) < 400
    return line


PAIR = ["--target", "llama-3.1-8b", "--draft", "llama-68m"]
NUMBERS = {
    "record": [
        ("--seed", "-1"),
        ("--seed", str(1 << 70)),
        ("--top-k", "-1"),
        ("--top-p", "nan"),
        ("--num-prompts", "0"),
        ("--skip-prompts", "-3"),
        ("--max-new-tokens", "0"),
        ("--max-new-tokens", str(1 << 40)),
        ("--repeats", "0"),
        ("--tail-depth", "-1"),
        ("--tail-depth", "100000"),
        ("--verify-width", "-1"),
        ("--draft-sms", "-8"),
        ("--capacity", "0"),
        ("--temperature", "inf"),
        ("--temperature", "nan"),
    ],
    "compare": [("--num-prompts", "0"), ("--repeats", "-1"), ("--seed", "-1"), ("--temperature", "nan")],
    "demo": [("--seed", "-1")],
    "calibrate": [("--seed", "-1")],
    "simulate": [("--seed", "-1")],
    "validate": [("--num-prompts", "0"), ("--repeats", "0"), ("--seed", "-1")],
    "explore": [
        ("--top", "0"),
        ("--top", "-5"),
        ("--cost-ratio", "inf"),
        ("--cost-ratio", "-1"),
        ("--cost-ratio", "nan"),
        ("--cost-ratio", "0"),
        ("--interference", "0.5"),
        ("--interference", "inf"),
        ("--link-latency", "-1"),
        ("--link-latency", "inf"),
        ("--temperature", "inf"),
        ("--trials", "-1"),
        ("--trials", str(1 << 40)),
        ("--workers", "0"),
        ("--workers", "100000"),
        ("--seed", "-1"),
    ],
    "plan": [("--num-prompts", "0"), ("--num-prompts", "99999999999")],
    "published": [("--num-requests", "0"), ("--num-requests", str(10**9)), ("--num-tokens", "0"), ("--seed", "-1")],
    "roofline": [
        ("--num-devices", "0"),
        ("--bits", "0"),
        ("--bits", "nan"),
        ("--context", "0"),
        ("--bandwidth-share", "0"),
        ("--bandwidth-share", "1.5"),
        ("--peak-share", "nan"),
        ("--layer-us", "-1"),
        ("--host-us", "nan"),
        ("--host-us", "inf"),
        ("--uncertainty", "1"),
    ],
    "hrad collect": [("--draft-length", "0"), ("--num-feature-layers", "-1"), ("--capacity", "-1")],
    "pair train": [("--max-minutes", "nan"), ("--max-minutes", "-1")],
}


@pytest.mark.parametrize(
    ("command", "option", "value"), [(command, *case) for command, cases in NUMBERS.items() for case in cases]
)
def test_numbers_out_of_range_name_their_option(
    command: str, option: str, value: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needs = {"calibrate": ["--output", str(tmp_path / "c")], "roofline": ["--output", str(tmp_path / "r"), *PAIR]}
    options = needs.get(command, ["--output-dir", str(tmp_path / "out")])
    if command in ("calibrate", "simulate", "validate", "explore"):
        options += ["--run", str(run)]
    line = _refused(capsys, *command.split(), *options, option, value)
    assert option in line
    assert value in line
    assert line.count("but got") <= 1, "the value is told twice"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explore", "--cost-ratio", "3", "--cost-ratio", "3"], "cost_ratios has 3.0 twice"),
        (["explore", "--temperature", "1", "--temperature", "1"], "temperatures has 1.0 twice"),
        (["explore", "--temperature", "-1"], "temperature must be 0"),
        (["explore", "--alignment", "geometric:alpha=2"], "alpha must lie between 0 and 1"),
        (["explore", "--alignment", "hazard", "--alignment", "hazard"], "alignments has hazard twice"),
        (["explore", "--objective", "speed", "--objective", "speed"], "objectives has speed twice"),
        (["explore", "--objective", "luck"], "luck"),
        (["explore", "--placement", "moon"], "moon"),
        (["explore", "--sampler", "dice"], "dice"),
        (["explore", "--backend", "abacus"], "abacus"),
        (["explore", "--policy", "pearl", "--policy", "pearl"], "pearl is given twice"),
        (
            ["simulate", "--policy", "saguaro:fan_out=2", "--policy", "saguaro:draft_length=5,fan_out=2"],
            "is given twice",
        ),
        (["simulate", "--policy", "pearl:draft_length=1,draft_length=2"], "draft_length is given twice"),
        (["validate", "--policy", "pearl", "--policy", "pearl"], "is given twice"),
        (["simulate"], "--policy"),
    ],
)
def test_choices_that_are_none_are_named(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = _refused(capsys, *arguments, "--run", str(run), "--output-dir", str(tmp_path / "out"))
    assert told in line
    assert not list(tmp_path.iterdir())


PROMPTS = {
    "missing": (None, "no prompts at"),
    "few": ('{"prompt": "x"}\n', "holds 1 prompts, but 16 were asked for"),
    "broken": ('{"prompt": "x"}\n[]\n', "line 2"),
    "long": (json.dumps({"prompt": "x " * 3000}) + "\n", "a capacity of 1024 holds 928"),
}


@pytest.mark.parametrize("command", ["record", "hrad collect"])
@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_are_read_before_models_are_loaded(
    command: str, case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text, told = PROMPTS[case]
    file = tmp_path / "prompts.jsonl"
    if text is not None:
        file.write_text(text)
    number = [] if case == "few" and command == "record" else ["--num-prompts", "16" if case == "few" else "1"]
    if case == "broken":
        number = ["--num-prompts", "2"]
    line = _refused(capsys, *command.split(), "--output-dir", str(tmp_path / "out"), "--prompts", str(file), *number)
    assert told in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["record", "--output-dir", "/proc/nowhere/run"], "/proc/nowhere/run"),
        (["record", "--policy", "specbranch:uses_hrad=True", "--output-dir", "OUT"], "record with --hrad"),
        (["record", "--policy", "prompt_lookup", "--output-dir", "OUT"], "prompt_lookup"),
        (["record", "--hrad", "nowhere", "--output-dir", "OUT"], "no H-RAD predictor at nowhere"),
        (["record", "--engine", "steam", "--output-dir", "OUT"], "unknown engine 'steam'"),
        (["record", "--draft", "", "--output-dir", "OUT"], "a model's name is empty"),
        (
            ["record", "--draft", "prompt_lookup:min_ngram=2,min_ngram=3", "--output-dir", "OUT"],
            "min_ngram is given twice",
        ),
        (["record", "--target", __file__, "--output-dir", "OUT"], "is a file, not a model folder"),
        (["record", "--rule", "ratio", "--policy", "pearl", "--output-dir", "OUT"], "with the rule ratio no settings"),
        (["record", "--acceptance", "run:RUN", "--policy", "pearl", "--output-dir", "OUT"], "acceptance 'run:"),
        (["record", "--acceptance", "geometric:alpha=2", "--output-dir", "OUT"], "alpha must lie between 0 and 1"),
        (["explore", "--run", "RUN", "--backend", "dask", "--output-dir", "OUT"], "needs --scheduler"),
        (["record", "--seed", "1.5", "--output-dir", "OUT"], "'--seed': Input should be a valid integer"),
        (["record", "--seed", "1.5", "--output-dir", "OUT"], "but got '1.5'."),
        (["record", "--seed=e", "--output-dir", "OUT"], "but got 'e'."),
        (["record", "--device", "moon", "--output-dir", "OUT"], "moon"),
        (["record", "--dtype", "float7", "--output-dir", "OUT"], "float7"),
        (["record", "--acceptance", "luck", "--output-dir", "OUT"], "luck"),
        (["record", "--stop", "", "--output-dir", "OUT"], "stop string"),
        (["record", "--capacity", "100000000", "--output-dir", "OUT"], "100000000"),
        (["hrad", "collect", "--num-feature-layers", "99", "--output-dir", "OUT"], "the target has 12 blocks"),
        (["compare", "--pair", "moon", "--output-dir", "OUT"], "unknown pair 'moon': choose embedded or smollm2"),
        (["compare", "--pair", "smollm2", "--draft", "x", "--output-dir", "OUT"], "leave out --target and --draft"),
        (["compare", "--num-prompts", "5000", "--output-dir", "OUT"], "10000 held out prompts"),
    ],
)
def test_cheap_checks_come_before_models(
    arguments: list[str], told: str, mixed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (word.replace("OUT", str(tmp_path / "out")).replace("RUN", str(mixed)) for word in arguments)
    line = _refused(capsys, *words)
    assert told in line
    assert not list(tmp_path.iterdir())


def test_of_an_option_given_twice_no_wrong_value_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = _refused(capsys, "record", "--temperature", "0", "--temperature", "x", "--output-dir", str(tmp_path / "out"))
    assert "'--temperature'" in line
    assert "but got '0'" not in line
