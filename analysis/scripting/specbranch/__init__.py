"""specbranch for scripts: what the commands do, as functions that read like them.

    import specbranch

    specbranch.record("runs/mine", num_prompts=8)
    found = specbranch.explore("runs/mine", "runs/explored", policies=["pearl:draft_length=4", "fixed_length"])
    print(found.best(3))

Nothing is imported before it is asked for; torch only by `record`, `validate` and `compare`, which run models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import specbranch.policies as policies
    from specbranch.running import compare, record, validate
    from specbranch.serving import advise, plan, read_engine_files, report
    from specbranch.simulating import calibrate, explore, read_run, simulate

__all__ = [
    "advise",
    "calibrate",
    "compare",
    "explore",
    "plan",
    "policies",
    "read_engine_files",
    "read_run",
    "record",
    "report",
    "simulate",
    "validate",
]

_MODULES = {
    "record": "running",
    "validate": "running",
    "compare": "running",
    "calibrate": "simulating",
    "explore": "simulating",
    "simulate": "simulating",
    "read_run": "simulating",
    "plan": "serving",
    "advise": "serving",
    "read_engine_files": "serving",
    "report": "serving",
}


def __getattr__(name: str) -> Any:
    if name == "policies":
        return importlib.import_module(f"{__name__}.policies")
    if name not in _MODULES:
        raise AttributeError(f"specbranch has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
