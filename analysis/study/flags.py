"""A study from what a user says beside it: options of the command line, or arguments of a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.study.candidates import default_grid
from analysis.study.study import Study, make_study, read_study
from sim.decoding.policies.catalog import label_of, parse_policies


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """What flags say of a study, in the place of what the study itself says. None, 0 and empty leave it as it is.

    study: a file, or an object; None for that of the default grid. conditions: values of
    `analysis.study.study.Conditions` by name. trials: of Optuna, for which a sampler alone suffices.
    """

    study: Path | Study | None = None
    policies: Sequence[str] | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    objectives: Sequence[str] | None = None
    trials: int = 0
    sampler: str | None = None
    seed: int | None = None

    def resolved(self) -> Study:
        """The study with the flags' values; StudyError where they make none."""
        if self.study is None:
            settings: dict[str, Any] = {"policies": list(map(label_of, default_grid()))}
        else:
            settings = (read_study(self.study) if isinstance(self.study, Path) else self.study).as_dict()
        if self.policies:
            parse_policies(self.policies)
            settings["policies"] = list(self.policies)
        conditions = {name: values for name, values in self.conditions.items() if values}
        settings["conditions"] = dict(settings.get("conditions", {})) | conditions
        if self.objectives:
            settings["objectives"] = list(self.objectives)
        if self.trials or self.sampler:
            search = dict(settings.get("search", {}))
            kind = self.sampler or (search["kind"] if search.get("kind", "grid") != "grid" else "tpe")
            settings["search"] = search | {"kind": kind} | ({"trials": self.trials} if self.trials else {})
        if self.seed is not None:
            settings["seed"] = self.seed
        return make_study(settings, where=str(self.study) if isinstance(self.study, Path) else "flags")
