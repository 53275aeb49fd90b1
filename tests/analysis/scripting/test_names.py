"""`import specbranch` is quick, has the names of the commands, and takes what they take."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import specbranch

ROOT = Path(__file__).parents[3]
COMMANDS = {
    "record": "analysis.cli.models.record",
    "validate": "analysis.cli.models.validate",
    "compare": "analysis.cli.models.compare",
    "calibrate": "analysis.cli.planning.calibrate",
    "explore": "analysis.cli.planning.explore",
    "simulate": "analysis.cli.planning.simulate",
    "plan": "analysis.cli.planning.plan",
    "report": "analysis.cli.reporting.report",
}
# What only a terminal has, or a script has in another way.
ONLY_OPTIONS = {
    "as_json",
    "sweep",
    "sweep_batch",
    "model_sampling",
    "bench",
    "top",
    "check",
    "fit_k",
    "fit_concurrency",
}
ONLY_ARGUMENTS = {"progress"}
RENAMED = {"link_latency": "link_latency_ms"}
PLURALS = {
    "policy": "policies",
    **{name: f"{name}s" for name in ("temperature", "placement", "cost_ratio", "alignment")},
}
PLURALS["objective"] = "objectives"


def test_nothing_heavy_is_imported_and_every_name_is_there() -> None:
    script = (
        "import sys, specbranch\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'typer', 'analysis'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "for name in set(dir(specbranch)) - {'record', 'validate', 'compare'}:\n    getattr(specbranch, name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "analysis" / "scripting")])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="specbranch has no 'nothing'; it has advise"):
        specbranch.nothing  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_takes_what_its_command_takes_with_the_same_defaults(name: str) -> None:
    command = inspect.signature(getattr(importlib.import_module(COMMANDS[name]), name)).parameters
    function = inspect.signature(getattr(specbranch, name)).parameters
    options = {RENAMED.get(option, PLURALS.get(option, option)): value for option, value in command.items()}
    assert set(function) - ONLY_ARGUMENTS == set(options) - ONLY_OPTIONS
    for argument, value in function.items():
        given = options[argument].default if argument in options else None
        if isinstance(given, int | float | str) and not isinstance(given, inspect.Parameter):
            assert value.default == given, argument


def test_policies_are_the_catalogs_and_what_one_derives_from() -> None:
    assert specbranch.policies.parse_policy("pearl:draft_length=4") == specbranch.policies.Pearl(4)
    assert {"Defaults", "Observation", "Signal", "Hedges", "Needs"} <= set(specbranch.policies.__all__)
