"""A study says what is tried; every mistake in it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.study.flags import StudyFlags
from analysis.study.study import Family, Objective, Range, StudyError, make_study, read_study
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop

STUDIES = Path(__file__).parents[3] / "examples" / "studies"


def test_the_thousand_policies_are_a_thousand() -> None:
    study = read_study(STUDIES / "thousand_policies.yaml")
    policies = study.all_policies()
    assert len(policies) == len({label_of(policy) for policy in policies}) == 1000
    assert {type(policy) for policy in policies} >= {SpecBranch, Saguaro, Pearl, ConfidenceStop}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_every_example_study_is_valid(path: Path) -> None:
    assert read_study(path).all_policies()


@given(first=st.integers(-5, 20), extra=st.integers(0, 30), step=st.integers(1, 7))
def test_ranges_of_whole_numbers_hold_their_ends_and_stay_whole(first: int, extra: int, step: int) -> None:
    values = Range(first=first, last=first + extra, step=step).values()
    assert values == tuple(range(first, first + extra + 1, step))


def test_ranges_of_fractions_are_short_numbers() -> None:
    assert Range(first=0.1, last=0.5, step=0.1).values() == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert Range(first=0.2, last=0.8, count=4).values() == (0.2, 0.4, 0.6, 0.8)


def test_a_family_is_the_product_of_its_settings() -> None:
    family = Family(method="specbranch", settings={"draft_length": Range(first=3, last=5), "max_branches": [1, 4]})
    assert len(family.policies()) == 6


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"policies": ["pearl"], "polices": []}, "unknown key 'polices'"),
    ({"policies": ["pearl"], "conditions": {"temperature": [1.0]}}, "unknown key 'temperature' in conditions"),
    ({"policies": [{"method": "pearl", "setings": {}}]}, "unknown key 'setings' in policies.0"),
    ({"policies": [{"method": "pearl", "settings": {"draft_length": {"first": 1, "last": 4, "stp": 1}}}]}, "'stp'"),
    ({"policies": []}, "list of policies is empty"),
    ({"policies": [{"method": "pearl", "settings": {"draft_length": {"first": 5, "last": 2}}}]}, "5 to 2 is empty"),
    ({"policies": [{"method": "pearl", "settings": {"draft_length": {"first": 1, "last": 2, "count": 0}}}]}, "empty"),
    ({"policies": [{"method": "pearl", "settings": {"draft_length": []}}]}, "list of draft_length is empty"),
    ({"policies": [{"method": "pearl", "settings": {"gamma": [3]}}]}, "no setting 'gamma'"),
    ({"policies": ["magic"]}, "unknown policy 'magic'"),
    ({"policies": ["pearl:draft_length=0"]}, "draft_length must be at least 1"),
    ({"policies": ["pearl"], "conditions": {"cost_ratios": [-1]}}, "cost_ratios must be positive"),
    ({"policies": ["pearl"], "conditions": {"alignments": ["geometric"]}}, "needs its acceptance"),
    ({"policies": ["pearl"], "conditions": {"interference": [0.5]}}, "interference must be at least 1"),
    ({"policies": ["pearl"], "search": {"kind": "random"}}, "search.kind"),
    ({"policies": [{"method": "pearl", "settings": {"draft_length": {"first": 1, "last": float("nan")}}}]}, "two ends"),
    (
        {
            "policies": [
                {"method": "saguaro", "settings": {"draft_length": {"first": 1, "last": 60_000}, "fan_out": [1, 2]}}
            ]
        },
        "grid has 120000 policies",
    ),
    (
        {"policies": ["pearl"], "conditions": {"placements": ["two_devices"], "interference": [1.3]}},
        "interference is that of a shared_device",
    ),
    (
        {"policies": ["pearl"], "conditions": {"placements": ["shared_device"], "link_latency_s": [0.01]}},
        "link_latency_s is that of two_devices",
    ),
    ({"policies": ["pearl"], "objectives": []}, "list of objectives is empty"),
    ({}, "policies is missing"),
]


@pytest.mark.parametrize(("settings", "told"), MISTAKES)
def test_a_mistake_is_one_clear_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_study(settings, where="my.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("my.yaml: ")


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    for text, told in [("policies: [", "cannot read"), ("- pearl", "should hold settings by name, but holds list")]:
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(StudyError, match=told):
            read_study(tmp_path / "study.yaml")
    with pytest.raises(StudyError, match="cannot read"):
        read_study(tmp_path / "missing.yaml")


def test_a_study_survives_its_own_plain_form() -> None:
    study = read_study(STUDIES / "placements.yaml")
    again = make_study(study.as_dict())
    assert again == study
    assert again.fingerprint() == study.fingerprint()


def test_placements_are_links_and_interferences() -> None:
    study = make_study({"policies": ["pearl"], "conditions": {"interference": [1.3], "link_latency_s": [0.0, 0.01]}})
    labels = [placement.label for placement in study.conditions.all_placements()]
    assert labels == ["two_devices", "two_devices:link_latency_s=0.01", "shared_device:interference=1.3"]


def test_flags_take_the_place_of_what_the_file_says() -> None:
    study = StudyFlags(
        study=STUDIES / "placements.yaml",
        policies=["pearl"],
        conditions={"cost_ratios": [4.0], "placements": None},
        trials=30,
        seed=7,
    ).resolved()
    assert (study.all_policies(), study.seed) == ([Pearl(6)], 7)
    assert study.conditions.all_cost_ratios() == [4.0]
    assert (study.search.kind, study.search.trials) == ("tpe", 30)
    assert study.conditions.interference == [1.3, 2.0]
    assert study.objectives[0] is Objective.SPEED
    searched = StudyFlags(objectives=["speed", "energy"], sampler="nsga2").resolved()
    assert searched.objectives == [Objective.SPEED, Objective.ENERGY]
    assert (searched.search.kind, searched.search.trials) == ("nsga2", 200)
    with pytest.raises(StudyError, match="objectives"):
        StudyFlags(objectives=["fun"]).resolved()
