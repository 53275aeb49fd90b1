"""The command line as a stranger meets it: it starts without torch, and bad input is one clear line."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer

from analysis.cli.main import app, hrad_app, pair_app
from tests.analysis.command import call
from tests.analysis.made_up_run import write_run
from traces.folder.writer import RunWriter


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command, in this process."""
    code = call(*arguments)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["explore", "--help"], ["simulate", "--help"], ["record", "--help"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom analysis.cli.main import main\n"
        f"sys.argv = ['specbranch', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert told.returncode == 0, told.stderr
    assert "Usage" in told.stdout


def test_simulation_and_exploration_run_without_torch(tmp_path: Path, recorded: Path) -> None:
    script = (
        "import sys\nfrom analysis.cli.main import main\n"
        "def call(*arguments):\n    sys.argv = ['specbranch', *arguments]\n    main()\n"
        f"call('calibrate', '--run', {str(recorded)!r}, '--output', {str(tmp_path / 'c.json')!r})\n"
        f"call('simulate', '--run', {str(recorded)!r}, '--output-dir', {str(tmp_path / 's')!r}, '--policy', 'pearl')\n"
        f"call('roofline', '--output', {str(tmp_path / 'r.json')!r}, '--target', 'llama-3.1-8b', '--draft', 'llama-68m')\n"
        f"call('explore', '--run', {str(recorded)!r}, '--output-dir', {str(tmp_path / 'e')!r}, '--policy', 'pearl')\n"
        "assert 'torch' not in sys.modules\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "s" / "00-pearl" / "summary.json").exists()
    assert (tmp_path / "e" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["record", "--policy", "magic"], "unknown policy 'magic'"),
        (["record", "--policy", "fixed_length:draft_length=0"], "draft_length must be at least 1"),
        (["record", "--temperature", "-1"], "temperature must be 0"),
        (["record", "--prompts", "nowhere.jsonl"], "no prompts at nowhere.jsonl"),
        (["record", "--target", "nowhere/at-all"], "nowhere/at-all"),
        (["validate", "--run", "missing-run"], "missing-run"),
        (["simulate", "--run", "missing-run", "--policy", "pearl"], "missing-run"),
        (["explore", "--run", "missing-run"], "missing-run"),
        (["record", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], told: str
) -> None:
    code, errors = _run(capsys, *arguments, "--output-dir", str(tmp_path / "out"))
    assert code != 0
    line = errors.strip()
    assert line.startswith("error: ")
    assert told in line
    assert "\n" not in line


def test_a_foreign_folder_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    code, errors = _run(capsys, "calibrate", "--run", str(tmp_path / "foreign"))
    assert code != 0
    assert str(tmp_path / "foreign") in errors


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for command in (["record"], ["demo", "--quick"], ["compare", "--quick"]):
        code, errors = _run(capsys, *command, "--output-dir", str(tmp_path))
        assert code != 0
        assert "name a new folder" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs a place root cannot write")
def test_an_unwritable_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = _run(capsys, "record", "--output-dir", "/proc/specbranch-run")
    assert code != 0
    assert "/proc/specbranch-run" in errors
    assert "\n" not in errors.strip()


def test_a_pair_with_two_vocabularies_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import json
    import shutil

    from executor.models.names import resolve_model

    other = tmp_path / "other"
    shutil.copytree(resolve_model("embedded", "draft"), other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, errors = _run(capsys, "record", "--draft", str(other), "--output-dir", str(tmp_path / "out"))
    assert code != 0
    assert "vocabular" in errors
    assert "\n" not in errors.strip()


def test_a_truncated_run_is_refused_or_read_as_far_as_it_goes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recorded: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(recorded, broken)
    path = broken / "ops.parquet"
    path.write_bytes(path.read_bytes()[:100])
    code, errors = _run(capsys, "calibrate", "--run", str(broken), "--output", str(tmp_path / "c.json"))
    assert code != 0
    assert "ops.parquet" in errors


def test_an_unfinished_run_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunWriter(tmp_path / "cut", config={}, meta={}) as writer:
        writer.flush()
    code, errors = _run(capsys, "calibrate", "--run", str(tmp_path / "cut"))
    assert code != 0
    assert "cut" in errors


def test_every_command_is_documented() -> None:
    for command in [*app.registered_commands, *hrad_app.registered_commands, *pair_app.registered_commands]:
        assert command.callback is not None
        assert command.callback.__doc__, command.name


def test_every_option_has_a_help_text_that_is_a_sentence() -> None:
    commands: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for group in ("hrad", "pair"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    assert len(commands) == 23
    for name, command in commands.items():
        for option in command.params:
            text = getattr(option, "help", "")
            assert text, f"{name} --{option.name}"
            assert text[0].isupper(), f"{name} --{option.name}: {text}"
            assert text.endswith("."), f"{name} --{option.name}: {text}"


@pytest.mark.parametrize("name", ["record", "compare", "hrad collect", "hrad evaluate", "hrad ablate"])
def test_every_command_that_loads_a_pair_takes_the_options_of_pairs(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    flags = {flag for option in command.params for flag in option.opts}
    assert {
        "--target",
        "--draft",
        "--allow-vocab-difference",
        "--ignore-generation-config",
        "--trust-remote-code",
    } <= flags


def test_a_recording_that_trusted_code_does_not_trust_it_for_the_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The config of a run may come from anybody: code is run where this very command says so."""
    from executor.models.settings import EngineSettings, PairSettings
    from executor.recording.settings import RecordSettings, config_of

    pair = PairSettings(engine=EngineSettings(trusts_remote_code=True), target=str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    maps = '{"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}'
    (tmp_path / "own" / "config.json").write_text(f'{{"model_type": "own", "auto_map": {maps}}}')
    (tmp_path / "own" / "code.py").write_text("raise SystemExit('ran')")
    with RunWriter(tmp_path / "run", config=config_of(RecordSettings(pair=pair)), meta={"kind": "executed"}) as writer:
        writer.finish({})
    code, errors = _run(capsys, "validate", "--run", str(tmp_path / "run"), "--output-dir", str(tmp_path / "v"))
    assert code == 1
    assert "add --trust-remote-code" in errors


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    script = (
        "import sys\nimport analysis.cli.main\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'scipy', 'pydantic', 'matplotlib', 'pyarrow', 'simpy'}\n"
        "loaded = heavy & set(sys.modules)\nassert not loaded, loaded\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert completed.returncode == 0, completed.stderr


@pytest.mark.parametrize(
    ("study", "told"),
    [
        ("{policies: [pearl], polices: []}", "unknown key 'polices'"),
        ("{policies: [{method: pearl, settings: {draft_length: {first: 5, last: 2}}}]}", "range from 5 to 2 is empty"),
        ("{policies: [{method: confidence_stop, settings: {max_length: [4, 40]}}]}", "may look at 39"),
    ],
)
def test_a_study_that_cannot_be_run_is_one_line_and_no_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, study: str, told: str
) -> None:
    write_run(tmp_path / "run", num_requests=2, num_tokens=20)
    (tmp_path / "study.yaml").write_text(study)
    places = ["--trace", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]
    code, error = _run(capsys, "explore", "--study", str(tmp_path / "study.yaml"), *places)
    assert code == 1
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_warning_is_one_line_without_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def warn_and_fail(path: str) -> None:
        for _ in range(2):  # as of two steps that read one run
            warnings.warn("two\nlines", stacklevel=1)
            warnings.warn("two\nlines", stacklevel=2)
        raise ValueError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("traces.folder.run.read_run", warn_and_fail)
        code, error = _run(capsys, "calibrate", "--run", str(tmp_path))
    assert (code, error) == (1, "warning: two lines\nerror: enough\n")


def test_the_defaults_of_record_are_those_of_its_settings() -> None:
    import inspect

    from analysis.cli.models.record import record
    from executor.recording.settings import RecordSettings

    settings = RecordSettings()
    pair, engine, decoding, prompts = settings.pair, settings.pair.engine, settings.decoding, settings.prompts
    expected = {
        **{
            name: getattr(pair, name)
            for name in ("target", "draft", "hrad", "target_device", "transport", "verify_width", "rule")
        },
        **{name: getattr(engine, name) for name in ("device", "dtype", "capacity")},
        **{name: getattr(decoding, name) for name in ("top_k", "top_p", "max_new_tokens", "seed", "ignore_eos")},
        "draft_sms": pair.draft_sms,
        "ignore_generation_config": pair.ignores_generation_config,
        "allow_vocab_difference": pair.allows_vocab_difference,
        "trust_remote_code": engine.trusts_remote_code,
        "engine": engine.kind,
        "acceptance": decoding.acceptance,
        "prompts": prompts.source,
        "num_prompts": prompts.num,
        "skip_prompts": prompts.skip,
        "timed_prompts": prompts.num_timed or 0,
        "repeats": settings.repeats,
        "tail_depth": settings.tail_depth,
    }
    defaults = {name: value.default for name, value in inspect.signature(record).parameters.items()}
    assert {name: defaults[name] for name in expected} == expected
    rest = defaults.keys() - expected.keys()
    assert rest == {
        "output_dir",
        "policy",
        "temperature",
        "stop",
        "chat",
        "model_sampling",
        "sweep",
        "sweep_batch",
        "resume",
    }, "a new option needs a default of its settings"


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"specbranch {importlib.metadata.version('specbranch')}\n"
