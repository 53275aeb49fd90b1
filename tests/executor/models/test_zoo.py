"""Many architectures against transformers' own `generate`: equal tokens under every policy, or refused by name.

The models are made by a script that lies beside the data of this project; without it these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from executor.loop import run_request
from executor.models.engines.base import Engine
from executor.models.loading import load_engine
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import ModelError
from executor.recording.recorder import record_run
from executor.request import Request
from executor.roles.draft_side import DraftSide
from executor.roles.target_side import TargetSide
from sim.decoding.policies.catalog import parse_policy
from tests.settings import record_settings
from traces.folder.run import read_run
from traces.schema import Sampling

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"
BUILDER = CASES / "build_models.py"
NAMES = re.findall(r'^add\("(\w+)"', BUILDER.read_text(), re.M) if BUILDER.exists() else []
POLICIES = (
    "autoregressive",
    "fixed_length:draft_length=3",
    "pearl:draft_length=3",
    "specbranch:draft_length=3,uses_hrad=False",
    "saguaro:draft_length=3",
    "outcome_hedging:draft_length=3",
)
NUM_NEW, CAPACITY = 60, 128  # windows of 24 and original lengths of 64 are crossed
PROMPT = "def first(values):\n    return values[0]\n"
ALIBI = {"bloom", "mpt", "falcon_alibi"}
STOP = bytes.fromhex("f09fa7aa e4b880 e5b981 e6ba82 e7bb83 e8bc84 e9bd85").decode()  # no byte twice

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NAMES, reason="the script that makes the models is not here")]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    subprocess.run([sys.executable, str(BUILDER), str(folder)], check=True, capture_output=True)
    return folder


@cache
def _generated(folder: Path, prompt: tuple[int, ...]) -> list[int]:
    """What transformers generates after the prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_NEW, eos_token_id=None)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@torch.inference_mode()
def _decoded(target: Engine, draft: Engine, label: str, prompt: tuple[int, ...]) -> list[int]:
    request = Request(prompt_id="p", tokens=prompt, max_new_tokens=NUM_NEW, sampling=Sampling(0.0), ignore_eos=True)
    decoded = run_request(
        request,
        parse_policy(label),
        request_id=0,
        draft=DraftSide(draft),
        target=TargetSide(target),
        noise=None,
        eos_ids=frozenset(),
        decode_text=str,
        is_recording=False,
    )
    return decoded.tokens


@pytest.mark.parametrize("kind", [EngineKind.STATIC, EngineKind.HUGGING_FACE])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_generate_or_the_model_is_refused(zoo: Path, name: str, kind: EngineKind) -> None:
    folders = [zoo / name / role for role in ("target", "draft")]
    if not (folders[0] / "config.json").exists():
        pytest.skip(f"this version of transformers does not build {name}")
    prompt = tuple(AutoTokenizer.from_pretrained(folders[0]).encode(PROMPT))
    refusal = ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            target, draft = (load_engine(folder, EngineSettings(kind=kind, capacity=CAPACITY)) for folder in folders)
        except ModelError as error:
            refusal = str(error)
    if refusal:
        assert str(folders[0]) in refusal
        assert "\n" not in refusal
        assert re.search("ALiBi" if name in ALIBI else "longrope" if "longrope" in name else "cannot|state", refusal)
        return
    assert name not in ALIBI
    assert "longrope" not in name
    if kind is EngineKind.STATIC and any("runs on the hugging_face engine" in str(each.message) for each in told):
        return  # the other case is this one
    for label in POLICIES:
        assert _decoded(target, draft, label, prompt) == _generated(folders[0], prompt), label


def test_a_stop_of_many_bytes_ends_where_generate_ends(zoo: Path, tmp_path: Path) -> None:
    """A greedy answer that spells an emoji and six rare characters in byte tokens, then filler."""
    arguments = [str(CASES / "build_chain.py"), STOP, str(zoo / "llama_llama3"), str(tmp_path / "chain")]
    built = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    (wanted,) = re.findall(r"transformers stops after (\d+)", built.stdout)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    settings = record_settings(
        target=str(tmp_path / "chain" / "target"),
        draft=str(tmp_path / "chain" / "draft"),
        policies=["autoregressive", "pearl:draft_length=3"],
        temperatures=[0.0],
        stop_strings=[STOP],
        max_new_tokens=40,
        capacity=128,
        prompts=str(prompts),
        num_prompts=1,
    )
    requests = record_run(settings, tmp_path / "run").requests
    assert set(requests.num_output_tokens) == {int(wanted)} == {22}
    assert set(requests.finish_reason) == {"stop_string"}


@pytest.mark.parametrize("to", ["group", "parent"])
@pytest.mark.parametrize("seconds", [1, 12])
def test_ctrl_c_is_130_one_line_and_a_readable_prefix(to: str, seconds: int, tmp_path: Path) -> None:
    folder, command = tmp_path / "run", tmp_path / "bin" / "specbranch"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom analysis.cli.main import main\nmain()\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    arguments = [str(CASES / "ctrl_c.py"), str(seconds), to, str(folder)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment)
    code, *lines = done.stdout.strip().splitlines()
    if code == "rc -2" and "importlib" in done.stdout:
        pytest.skip("the machine is so loaded that the signal came before the command began")
    assert code == "rc 130", done.stdout
    assert sum("interrupted" in line for line in lines) <= 1
    assert "Traceback" not in done.stdout
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in left
    if (folder / "meta.json").exists():
        assert not read_run(folder).is_complete
