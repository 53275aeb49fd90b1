"""A policy of one's own goes by module and class; labels run no code, and the user's folder hides nothing of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sim.decoding.policies.base import Defaults, Observation
from sim.decoding.policies.catalog import PolicyError, label_of, parse_policies, parse_policy
from sim.decoding.policies.own import OwnPolicyError, import_own, own_modules
from traces.schema import Signal

SOURCE = """
from dataclasses import dataclass
from sim.decoding.policies.base import Defaults

@dataclass(frozen=True)
class EveryOther(Defaults):
    draft_length: int = 4

    def draft_more(self, seen, pending):
        return 0 if pending or seen.num_rounds % 2 else self.draft_length

class Undecorated(Defaults):
    draft_length: int = 4

class Plain:
    pass
"""


@dataclass(frozen=True)
class Here(Defaults):
    """A policy of this file."""

    draft_length: int = 1

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return self.draft_length - len(pending)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of policies in the working folder, beside files that have our modules' and the library's names."""
    name = f"mine_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    for other in ("traces", "sim", "json"):
        (tmp_path / f"{other}.py").write_text("raise SystemExit('the folder of the user came first')\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_typed_class_is_imported_from_the_working_folder_and_its_label_read_back(module: str) -> None:
    path = list(sys.path)
    label = import_own(f"{module}:EveryOther(draft_length=2)")
    assert label == f"{module}.EveryOther:draft_length=2"
    policy = parse_policy(label)
    assert label_of(policy) == label
    assert parse_policy(f"{module}:EveryOther(num_speculative_tokens=2)") == policy
    assert import_own(label) == label  # what was printed can be typed
    assert sys.path == path
    assert sys.modules[module] in own_modules()


@pytest.mark.parametrize("name", ["traces", "sim", "json"])
def test_what_is_installed_keeps_its_name(module: str, name: str) -> None:
    with pytest.raises(OwnPolicyError, match="has no class EveryOther"):
        import_own(f"{name}:EveryOther")


def test_to_read_a_label_runs_no_code(module: str) -> None:
    for label in (f"{module}:EveryOther", f"{module}.EveryOther:draft_length=2"):
        with pytest.raises(PolicyError, match=f"the module {module} is not loaded"):
            parse_policy(label)
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("{}:Nobody", "has no class Nobody"),
        ("{}:Plain", "must be a frozen dataclass that answers needs, overlaps"),
        ("{}:Undecorated", "must be a frozen dataclass"),
        ("{}x:EveryOther", "cannot import"),
        ("{}:EveryOther(gamma=3)", "has no setting 'gamma'"),
        ("{}:EveryOther(draft_length=x)", "draft_length: Input should be a valid integer"),
        ("{}:EveryOther(draft_length=100000)", r"must lie in \[-4096, 4096\]"),
    ],
)
def test_what_is_no_policy_is_refused(module: str, label: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_policy(import_own(label.format(module)))


def test_a_file_with_a_mistake_is_named_with_its_line(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_late.py").write_text("\n1 / 0\n")
    with pytest.raises(OwnPolicyError, match=r"ZeroDivisionError.*_late.py, line 2"):
        import_own(f"{module}_late:EveryOther")


def test_two_names_of_one_setting_are_refused() -> None:
    assert parse_policy("fixed_length:num_speculative_tokens=3") == parse_policy("fixed_length:draft_length=3")
    with pytest.raises(PolicyError, match="another name of draft_length"):
        parse_policy("fixed_length:num_speculative_tokens=3,draft_length=3")
    with pytest.raises(PolicyError, match="is given twice"):
        parse_policies(["pearl:num_speculative_tokens=3", "pearl:draft_length=3"])


def test_a_class_that_could_not_be_found_again_has_no_label() -> None:
    assert parse_policy(label_of(Here(3))) == Here(3)

    @dataclass(frozen=True)
    class Inside(Defaults):
        pass

    with pytest.raises(PolicyError, match="define it at the top of a module"):
        label_of(Inside())
