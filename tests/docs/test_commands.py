"""The commands and scripts that README.md and docs/ show are run, in one folder.

The embedded pair stands for a large model, recordings are cut to a few tokens, and a server's files are made up. What takes
long or other hardware is not run here, with its reason below; its options are checked all the same (test_pages.py).
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from analysis.cli.main import app
from tests.analysis.command import call
from tests.docs.shown import ROOT, Shown, blocks, shell_commands
from tests.traces.importers.engines.engine_files import page

STANDS_FOR = {"meta-llama/Llama-3.1-8B": "embedded", "meta-llama/Llama-3.2-1B": "embedded"}
CUT = {"record": ("--num-prompts", "2", "--max-new-tokens", "24"), "explore": ("--top", "3")}
# Not run: (words that tell them, why).
NOT_RUN = (
    (("demo",), "minutes; .ci/run does"),
    (("compare",), "minutes; tests/analysis/check/test_compare.py does"),
    (("validate",), "minutes; tests/analysis/check/test_validate.py does"),
    (("cuda",), "needs a GPU; pytest -m gpu does"),
    (("plan",), "half a minute each; tests/analysis/cli/test_plan.py does"),
    (("--bench",), "needs benchmarks of a server; tests/analysis/plan/measured does"),
    (("--check",), "needs a measured server; tests/analysis/plan/measured does"),
    (("--costs",), "needs a measured server; tests/analysis/plan/measured does"),
    (("log.txt",), "needs benchmarks of a server; tests/analysis/cli/test_import.py does"),
    (("served.jsonl",), "needs responses of a server; tests/analysis/explore/test_foreign.py does"),
    (("distributed",), "needs gloo; tests/executor/remote/test_distributed.py does"),
    (("fetch",), "needs a download"),
    (("smollm2",), "needs a download"),
    (("train",), "hours"),
)


def command_of(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that these words name, and the words after it."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    return command, rest


def _is_run(shown: Shown) -> bool:
    words = shown.words[1:]
    return shown.words[0] == "specbranch" and not any(set(told) <= set(words) for told, _ in NOT_RUN)


RUN = list(dict.fromkeys(shown.words for shown in shell_commands() if _is_run(shown)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my.jsonl").write_text('{"prompt": "def add(a, b):"}\n{"prompt": "import os"}\n' * 4)
    rows = [
        f"2023-11-16 18:17:{index // 10:02d}.{index % 10}00000,{200 + index},{20 + index % 30}" for index in range(300)
    ]
    text = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])
    (folder / "AzureLLMInferenceTrace_conv.csv").write_text(text + "\n")
    (folder / "before.txt").write_text(page(100, (70, 40, 20)))
    (folder / "after.txt").write_text(page(1100, (870, 640, 420)))
    (folder / "examples").symlink_to(ROOT / "examples")
    own = next(text for name, text in blocks("python") if name == "extending.md")
    (folder / "my_policies.py").write_text(own)
    return folder


@pytest.mark.parametrize("words", RUN, ids=lambda words: " ".join(words)[:90])
def test_a_shown_command_runs(folder: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = [STANDS_FOR.get(word, word) for word in words[1:]]
    cut = CUT.get(arguments[0], ())
    added = [
        word for name, value in zip(cut[::2], cut[1::2], strict=True) if name not in words for word in (name, value)
    ]
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        code = call(*arguments, *added)
    assert code == 0, f"{' '.join(words)}: {printed.getvalue()}"


# The page on scripts records what the others read.
@pytest.mark.parametrize(("name", "text"), sorted(blocks("python"), key=lambda block: block[0] != "scripts.md"))
def test_a_shown_script_runs(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name])
    code = compile(text, name, "exec", dont_inherit=True)  # without this file's future imports
    if "specbranch.plan(" in text:
        return  # half a minute; its arguments are held to the command's by tests/analysis/scripting/test_names.py
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, {"__name__": f"shown_in_{Path(name).stem}"})


def test_every_reason_not_to_run_a_command_is_still_needed() -> None:
    words = [set(shown.words) for shown in shell_commands() if shown.words[0] == "specbranch"]
    idle = [told for told, _ in NOT_RUN if not any(set(told) <= each for each in words)]
    assert not idle, idle
