"""Hostile input for every reader and for the command line, and what became of each case.

A case is a target and a seed: `Fuzzer(folder).run(case)` makes the same input again. Readers meet files whose bytes or
values were damaged; the command line meets options with nonsense. Models are never loaded: sessions are refused first.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import math
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub.constants
import typer
import yaml

from analysis.check.comparison import read_comparison
from analysis.check.reports import write_report
from analysis.check.validation import VALIDATION, read_validation
from analysis.cli.main import _is_expected, app
from analysis.explore.exploration import explore_study
from analysis.explore.inputs import read_latency, write_roofline
from analysis.study.planned import Planned
from analysis.study.study import Study, make_study, read_study
from executor.errors import ExecutorError
from executor.models.names import parse_model
from executor.recording.prompts import load_prompts
from executor.recording.settings import RecordSettings, config_of, read_settings
from sim.decoding.acceptance_models import parse_acceptance
from sim.decoding.policies.catalog import POLICIES, parse_policy
from tests.analysis.check.test_reports import REPORT, ROW
from tests.analysis.made_up_run import write_run
from tests.analysis.serving_files import Read, write_serving_files
from tests.traces.importers.test_vllm_responses import response
from traces.fits.calibration import calibrate
from traces.folder.run import read_run
from traces.importers.catalog import read_foreign

ROOT = Path(__file__).parents[2]
MAX_MESSAGE = 1000
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 10**30, -(10**9), 1e308, -1e308, math.nan, math.inf, -math.inf, 1e-320, 0.5),
    *("", "x", "1", "nan", "é\u202e", "a\nb", "\0", "-", "a" * 3000, [], {}, [[]], [None], [1, "a"], {"a": 1}),
)
BYTES = (
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"[" * 2000,
    b"{",
    b"\xff\xfe",
    b"\0",
    b"!!bool x",
    b"&a *a",
    b"\n\n",
    b'"',
    b":",
)
NUMBERS = ("-1", "0", "1", "nan", "inf", "-inf", "1e999", "99999999999999999999", "0x10", "", " ", "1.5", "one", "1_0")
PLACES = ("", "nowhere", "/proc/none", "/dev/null", "a/../b", "\u202e", "x" * 300)
STUDY = {
    "policies": [
        {"method": "fixed_length", "settings": {"draft_length": {"first": 1, "last": 4}}},
        {"method": "specbranch", "settings": {"draft_length": [3, 5], "uses_hrad": [False]}},
        "pearl:draft_length=4",
    ],
    "conditions": {"interference": [1.2], "cost_ratios": ["measured", 5], "alignments": ["geometric:alpha=0.7"]},
    "search": {"kind": "tpe", "trials": 4, "batch": 2},
    "objectives": ["speed", "memory"],
    "latency": "mean",
    "seed": 1,
}
PROMPT_ROWS = (
    {"prompt": "def one():"},
    {"messages": [{"role": "user", "content": "hello"}]},
    {"turns": ["a", "b"]},
    {"prompt": [1, 2, 3]},
)


@dataclass(frozen=True)
class Case:
    """One input: what it is for, and the seed that it follows from."""

    target: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of a case. problem: what is wrong with it; empty where the input was taken, or refused in one line."""

    case: Case
    seconds: float
    is_refused: bool
    problem: str


class Fuzzer:
    """Valid files of every kind in a folder, to be damaged one at a time; they are put back after each case."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        run = write_run(folder / "run", num_requests=2, num_tokens=12)
        calibrate(read_run(run)).save(folder / "calibration.json")
        write_roofline(Planned(target="llama-3.1-8b", draft="llama-68m").latency(), folder / "roofline.json")
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        (folder / "served.jsonl").write_text(f"{json.dumps(response([2, 0, 3], [3, 3, 3]))}\n" * 3)
        (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in PROMPT_ROWS))
        serving = write_serving_files(folder)
        write_report(folder, VALIDATION, REPORT)
        write_report(folder, "comparison", [ROW])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explore_study(run, folder / "explored", Study(policies=["pearl", "autoregressive"]), is_sensitive=False)
        self._config = config_of(RecordSettings())
        self._command: Any = typer.main.get_command(app)
        self._commands = dict(_leaves(self._command))
        self.targets: dict[str, Callable[[random.Random], object]] = {
            "prompts": lambda rng: self._damaged(rng, "prompts.jsonl", lambda path: load_prompts(str(path), 3)),
            "run": self._read_run,
            "calibration": lambda rng: self._damaged(rng, "calibration.json", read_latency),
            "roofline": lambda rng: self._damaged(rng, "roofline.json", read_latency),
            "study": lambda rng: self._damaged(rng, "study.yaml", read_study),
            "study values": lambda rng: make_study(_with_nasty(rng, STUDY)),
            **{kind: self._one_of(files) for kind, files in serving.items()},
            "served": lambda rng: self._damaged(rng, "served.jsonl", lambda path: read_foreign(path).traces()),
            "validation": lambda rng: self._damaged(rng, "validation.json", lambda path: read_validation(path.parent)),
            "comparison": lambda rng: self._damaged(rng, "comparison.json", lambda path: read_comparison(path.parent)),
            "settings": lambda rng: read_settings({**self._config, **_named(_with_nasty(rng, self._config))}),
            "policy": lambda rng: parse_policy(_label(rng)),
            "acceptance": lambda rng: parse_acceptance(
                _label(rng), {"geometric": ("alpha", "rank_decay"), "hazard": ()}
            ),
            "model": lambda rng: parse_model(_label(rng)),
            "command line": self._call,
        }

    def run(self, case: Case) -> Outcome:
        """Make the input, hand it over, and look at what comes back."""
        rng, problem, is_refused = random.Random(f"{case.target} {case.seed}"), "", False
        started = time.process_time()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                self.targets[case.target](rng)
        except (Exception, SystemExit) as error:
            is_refused = True
            problem = _problem_of(error)
        return Outcome(case, time.process_time() - started, is_refused, problem)

    def _one_of(self, files: dict[str, Read]) -> Callable[[random.Random], object]:
        """A reader of one of these files, damaged."""

        def read(rng: random.Random) -> object:
            name = rng.choice(sorted(files))
            return self._damaged(rng, name, files[name])

        return read

    def _damaged(self, rng: random.Random, name: str, read: Callable[[Path], object]) -> object:
        """Read a file whose bytes or values were damaged."""
        path = self._folder / name
        before = path.read_bytes()
        try:
            path.write_bytes(_damage(rng, before))
            return read(path)
        finally:
            path.write_bytes(before)

    def _read_run(self, rng: random.Random) -> object:
        run = self._folder / "run"
        name = rng.choice(sorted(path.name for path in run.iterdir() if path.is_file()))

        def read(path: Path) -> object:
            read = read_run(path.parent)
            return [read.requests, read.rounds, read.ops, read.alignment, read.tails, read.traces()]

        return self._damaged(rng, f"run/{name}", read)

    def _call(self, rng: random.Random) -> object:
        """A command with some of its options, each with a sensible or a nonsensical value."""
        name = rng.choice(sorted(self._commands))
        out = self._folder / "out"
        # What is explored by default, and prompts of the standard library, take seconds: that is not what is tried here.
        given = {"explore": ["--policy", "pearl"], "hrad collect": ["--prompts", str(self._folder / "prompts.jsonl")]}
        arguments = [*name.split(), *given.get(name, [])]
        for option in self._commands[name]:
            if rng.random() < (0.95 if option.required else 0.2):
                is_argument = option.param_type_name == "argument"
                arguments += [] if is_argument else [option.opts[0]]
                if is_argument:
                    arguments.append(self._value(rng, name, option.opts[0], out))
                elif not option.is_flag:
                    arguments += [self._value(rng, name, option.opts[0], out) for _ in range(option.nargs)]
        if rng.random() < 0.05:
            arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(["--magic", "-x", "", "stray", "--"]))
        try:
            with _without_models():
                return self._command.main(arguments, standalone_mode=False, prog_name="specbranch")
        finally:
            for place in (out, out.with_name("out.partial"), self._folder / "run" / "calibration.json"):
                shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)

    def _value(self, rng: random.Random, command: str, option: str, out: Path) -> str:
        sensible = {
            "--run": self._folder / "run",
            "--trace": self._folder / "run",
            "--output-dir": out,
            "--output": out,
            "--calibration": self._folder / rng.choice(["calibration.json", "roofline.json"]),
            "--study": self._folder / "study.yaml",
            "--prompts": self._folder / "prompts.jsonl",
            "--explored": self._folder / "explored",
            "files": self._folder / rng.choice(("vllm_runs.jsonl", "report.log", "page.txt")),
            "--traffic": self._folder / "azure.traffic",
            "--costs": self._folder / "step_costs.json",
            "--per-position": self._folder / "acceptance.json",
            "--policy": "pearl",
            "--target": "llama-3.1-8b" if command == "roofline" else "embedded",
            "--draft": "llama-68m" if command == "roofline" else "embedded",
        }
        if option in ("--output-dir", "--output") or (option in sensible and rng.random() < 0.7):
            return str(sensible.get(option, out))
        return rng.choice(
            [rng.choice(NUMBERS), _label(rng), str(self._folder / rng.choice(PLACES)), rng.choice("01234")]
        )


def _leaves(command: Any, before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Commands with their options, without those that only measure or train for long."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _leaves(inner, f"{before}{name} ")
        elif name not in ("published", "demo", "train", "ablate", "evaluate"):
            yield before + name, [option for option in inner.params if option.opts[0] not in ("--help", "--workers")]


@contextlib.contextmanager
def _without_models() -> Iterator[None]:
    """Whatever would load a model ends there, as a worker that cannot start does."""
    import analysis.figures.figures
    import executor.hrad.collection
    import executor.pair

    def refuse(*_: object, **__: object) -> NoReturn:
        raise ExecutorError("no model is loaded here")

    places: tuple[tuple[Any, str, object], ...] = (
        (executor.pair, "load_engine", refuse),
        (executor.pair, "TargetClient", refuse),
        (executor.hrad.collection, "load_engine", refuse),
        (analysis.figures.figures, "FIGURES", {}),  # folders are read, but maps take seconds
        (huggingface_hub.constants, "HF_HUB_OFFLINE", True),  # an invented name is not looked up
    )
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _problem_of(error: BaseException) -> str:
    """Why an error is not for a user: its kind, no words, several lines, or words of a library's own."""
    if isinstance(error, SystemExit) or type(error).__name__ in ("Exit", "NoArgsIsHelpError"):
        return ""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if not isinstance(error, Exception) or not _is_expected(error):
        return f"{type(error).__name__}: {text[:200]}"
    if not text.strip():
        return f"{type(error).__name__} without a word"
    if len(text) > MAX_MESSAGE:
        return f"{len(text)} characters: {text[:100]}"
    if type(error) in (ValueError, UnicodeDecodeError, UnicodeEncodeError) and not _is_ours(error):
        return f"a library's own {type(error).__name__}: {text[:200]}"
    return ""


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this project raised it in so many words, and no function of a library that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    path = Path(trace.tb_frame.f_code.co_filename)
    is_inside = path.is_relative_to(ROOT) and "site-packages" not in path.parts
    return is_inside and linecache.getline(str(path), trace.tb_lineno).strip().startswith("raise")


def _damage(rng: random.Random, data: bytes) -> bytes:
    """Flipped bits, cuts, repetitions, foreign bytes, other numbers, or another value somewhere inside."""
    kind = rng.randrange(7)
    place = rng.randrange(len(data) + 1)
    if kind == 0:
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[rng.randrange(len(data) + 1) :]
    if kind == 3:
        return data[:place] + rng.choice(BYTES) + data[place:]
    if kind == 4:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data))
        if numbers:
            found = rng.choice(numbers)
            return data[: found.start()] + rng.choice(NUMBERS).encode() + data[found.end() :]
    with contextlib.suppress(Exception):
        if kind == 5 and b"\n{" in data:  # lines of JSON
            lines = data.decode().splitlines()
            index = rng.randrange(len(lines))
            lines[index] = json.dumps(_with_nasty(rng, json.loads(lines[index])))
            return "\n".join(lines).encode()
        return json.dumps(_with_nasty(rng, yaml.safe_load(data))).encode()
    return rng.randbytes(rng.randrange(60))


def _with_nasty(rng: random.Random, values: Any) -> Any:
    """A copy in which one value, anywhere inside, is another one, or gone, or there under another name."""
    if isinstance(values, dict) and values and rng.random() < 0.9:
        key = rng.choice(list(values))
        copy = {**values, key: _with_nasty(rng, values[key])}
        if rng.random() < 0.05:
            copy.pop(key)
        elif rng.random() < 0.05:
            copy[rng.choice(("x", "", "seed"))] = rng.choice(NASTY)
        return copy
    if isinstance(values, list | tuple) and values and rng.random() < 0.9:
        index = rng.randrange(len(values))
        return [*values[:index], _with_nasty(rng, values[index]), *values[index + 1 :]]
    return rng.choice(NASTY)


def _named(values: Any) -> dict[str, Any]:
    """Settings by name, whatever a mutation made of them."""
    return values if isinstance(values, dict) else {"pair": values}


def _label(rng: random.Random) -> str:
    """Something like name:setting=value,..."""
    names = (*POLICIES, "geometric", "hazard", "random", "prompt_lookup", "run", "magic", "", "é")
    keys = (
        "draft_length",
        "max_branches",
        "threshold",
        "signal",
        "alpha",
        "rank_decay",
        "max_ngram",
        "epsilon",
        "fan_out",
        "",
    )
    parts = [f"{rng.choice(keys)}={rng.choice((*NUMBERS, 'margin', 'True', 'é'))}" for _ in range(rng.randint(0, 3))]
    return rng.choice(names) + rng.choice((":", ":", "", "::", "=")) + rng.choice((",", ",", ";", ",,")).join(parts)
