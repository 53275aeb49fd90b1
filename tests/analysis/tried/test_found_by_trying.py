"""What was found wrong by trying, once more from outside: each case is a command line in a process of its own.

The tests use nothing of the package but its command, so that they also run against code from before the faults were mended:

    PYTHONPATH=OLD_CHECKOUT pytest -m slow tests/analysis/tried/test_found_by_trying.py

Nearly all of them fail there, with the code at 1cda327; the closing note of the issue lists which.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PACKAGE = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or str(ROOT)
PAIR = Path(PACKAGE) / "executor" / "embedded_pair" / "weights"
COMMAND = (
    "import importlib.util as u, importlib as i; n = 'analysis.cli.main'; "
    "is_new = u.find_spec('analysis.cli').submodule_search_locations; "
    "i.import_module(n if is_new else 'analysis.cli').main()"
)
MAX_S = 240.0  # a hang; a loaded machine takes a minute to load models


class Outcome:
    """What a command did."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.error, self.text = done.returncode, done.stderr, done.stdout

    @property
    def is_one_line(self) -> bool:
        lines = [line for line in self.error.splitlines() if line.startswith("error: ")]
        return self.code not in (0, None) and len(lines) == 1 and "Traceback" not in self.error

    def refuses(self, *names: str) -> None:
        assert self.is_one_line, (self.code, self.error[-2000:])
        for name in names:
            assert name in self.error, self.error[-2000:]


def run(folder: Path, *arguments: str, cores: str = "") -> Outcome:
    """One command in a working folder."""
    command = [*(["taskset", "-c", cores] if cores else []), sys.executable, "-P", "-c", COMMAND, *arguments]
    environment = {**os.environ, "PYTHONPATH": PACKAGE, "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    return Outcome(
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MAX_S, check=False)
    )


def recorded(folder: Path) -> Path:
    """A run that old and new code read."""
    return Path(shutil.copytree(ROOT / "tests" / "data" / "run_v1", folder / "run"))


SIMULATE = ("simulate", "--run", "run", "--policy", "pearl:draft_length=2", "--output-dir", "out")
SHORT = (
    "--num-prompts",
    "1",
    "--max-new-tokens",
    "12",
    "--policy",
    "autoregressive",
    "--policy",
    "pearl:draft_length=2",
)


def test_1_a_stop_of_no_text_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "record", *SHORT, "--output-dir", "out", "--stop", "").refuses("stop")


def test_2_the_users_files_are_not_run(tmp_path: Path) -> None:
    for name in ("executor.py", "numbers.py"):
        (tmp_path / name).write_text("raise SystemExit('the users file ran')")
    done = run(tmp_path, "record", *SHORT, "--output-dir", "out")
    assert done.code == 0, done.error


def test_3_a_ctrl_c_is_130_and_a_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, "record", "--num-prompts", "60", "--output-dir", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PACKAGE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        parts, deadline = tmp_path / "out" / "parts", time.monotonic() + MAX_S
        while not (parts.is_dir() and len(list(parts.iterdir())) > 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=MAX_S)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, (process.returncode, error)
    assert "interrupted" in error


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "hello"}]},
        {"turns": [{"role": "user", "content": "hello"}]},
        {"prompt": None},
        {"prompt": 5},
        {"turns": []},
    ],
    ids=str,
)
def test_4_prompts_of_another_shape_are_not_measured_as_text(row: object, tmp_path: Path) -> None:
    """The embedded pair has no chat template, so that messages are refused, too."""
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    run(tmp_path, "record", *SHORT, "--prompts", "p.jsonl", "--output-dir", "out").refuses("p.jsonl", "1")


def with_weights(folder: Path, role: str, change: float) -> Path:
    """A model of the pair whose final norm is scaled."""
    model = Path(shutil.copytree(PAIR / role, folder / role))
    weights = load_file(model / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("model.norm.weight") or name == "norm.weight"]
    weights[name] = weights[name] * change
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("role", ["target", "draft"])
def test_7_nan_logits_are_an_error(role: str, tmp_path: Path) -> None:
    pair = {name: str(PAIR / name) for name in ("target", "draft")} | {
        role: str(with_weights(tmp_path, role, float("nan")))
    }
    options = ("--target", pair["target"], "--draft", pair["draft"], "--engine", "static", "--output-dir", "out")
    run(tmp_path, "record", *SHORT, *options).refuses(role)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not here")
def test_8_one_core_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "record", *SHORT, "--output-dir", "out", cores="0")
    assert done.code == 0, done.error
    assert "core" in done.error + done.text, done.error + done.text


def test_9_a_temperature_too_small_for_floats_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "record", *SHORT, "--temperature", "1e-45", "--output-dir", "out").refuses("temperature", "1e-45")


@pytest.mark.parametrize(
    ("place", "value"),
    [(("fits", "verify", "coefficients", 0), -1.0), (("fits", "verify", "coefficients", 0), float("nan"))],
    ids=["negative", "nan"],
)
def test_14_broken_calibrations_are_refused(place: tuple[str | int, ...], value: float, tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    path = folder / "calibration.json"
    known = json.loads(path.read_text())
    inner = known
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(known))
    run(tmp_path, *SIMULATE, "--calibration", "run/calibration.json").refuses("calibration.json")


def test_14_hosts_that_take_no_number_are_refused(tmp_path: Path) -> None:
    pair = ("--target", "llama-3.1-8b", "--draft", "llama-68m", "--hardware", "h100")
    run(tmp_path, "roofline", *pair, "--host-us", "nan", "--output", "r.json").refuses("host-us", "nan")


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "a: " + "[" * 50_000, "seed: !!bool x"], ids=["empty", "list", "deep", "bool"]
)
def test_17_settings_that_are_none_are_a_line(text: str, tmp_path: Path) -> None:
    (recorded(tmp_path) / "config.yaml").write_text(text)
    done = run(tmp_path, *SIMULATE)
    done.refuses("config.yaml")
    assert len(done.error) < 2000, len(done.error)


def test_17_a_draft_that_is_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    draft = Path(shutil.copytree(PAIR / "draft", tmp_path / "draft"))
    (draft / "model.safetensors").unlink()
    (draft / "pytorch_model.bin").write_bytes(b"\x80\x02c__builtin__\neval\nq\x00.")
    options = ("--target", str(PAIR / "target"), "--draft", str(draft), "--output-dir", "out")
    done = run(tmp_path, "record", *SHORT, *options)
    done.refuses("draft")
    assert "weights_only" not in done.error
    assert "UnpicklingError" not in done.error


@pytest.mark.parametrize(
    "policy",
    [
        "fixed_length:draft_length=100000",
        "outcome_hedging:max_branches=1000000000",
        "saguaro:fan_out=1000,draft_length=1000",
    ],
)
def test_18_too_much_is_refused_before_work_starts(policy: str, tmp_path: Path) -> None:
    recorded(tmp_path)
    arguments = ("simulate", "--run", "run", "--policy", policy, "--output-dir", "out")
    try:
        run(tmp_path, *arguments).refuses(policy.partition(":")[2].partition("=")[0])
    except subprocess.TimeoutExpired:
        raise AssertionError("it hangs") from None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--policy", "fixed_length:draft_length=3,draft_length=5"), "twice"),
        (("--policy", "confidence_stop:threshold=nan"), "threshold"),
        (("--temperature", "inf"), "temperature"),
        (("--temperature", "0.7", "--temperature", "0.7"), "twice"),
        (("--tail-depth", "-1"), "tail-depth"),
        (("--verify-width", "-1"), "verify-width"),
        (("--seed", "-1"), "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_19_and_20_nonsense_is_refused_by_the_options_name(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    options = ("--num-prompts", "1", "--max-new-tokens", "4", "--output-dir", "out")
    run(tmp_path, "record", *options, *arguments).refuses(named)


@pytest.mark.parametrize("arguments", [("--top", "-5"), ("--cost-ratio", "inf")], ids=" ".join)
def test_19_nonsense_of_explore_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    recorded(tmp_path)
    run(tmp_path, "explore", "--run", "run", "--output-dir", "out", *arguments).refuses(arguments[0].strip("-"))
