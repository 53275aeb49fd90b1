"""What README.md and docs/ say stands up: links, commands, options, settings, lengths."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.study.study import make_study
from sim.decoding.policies.catalog import POLICIES
from tests.docs.shown import PAGES, ROOT, Shown, blocks, inline_commands, shell_commands
from tests.docs.test_commands import command_of
from traces.folder.tables import SCHEMAS

COMMANDS = [*shell_commands(), *inline_commands()]


@pytest.mark.parametrize("shown", sorted(set(COMMANDS)), ids=str)
def test_a_command_exists_with_the_options_that_are_shown(shown: Shown) -> None:
    program, *words = shown.words
    if program == "specbranch":
        command, rest = command_of(words)
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        unknown = [word for word in rest if word.startswith("--") and word not in known]
        assert not unknown, f"{shown}: there is no {' or '.join(unknown)}"
    elif program in ("pytest", "python", "mkdocs"):
        files = [word for word in words if word.endswith((".py", ".yml")) or word.startswith("tests/")]
        missing = [name for name in files if not (ROOT / name).exists()]
        assert not missing, f"{shown}: {' and '.join(missing)} does not exist"


def test_the_readme_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith(("http", "#")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name
        assert path.exists(), f"{page.name} links to {target}"
        headings = [
            re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8") if anchor else "", re.MULTILINE)
        ]
        assert not anchor or anchor in headings, f"{page.name} links to {target}"


def test_every_policy_stands_on_its_page_with_its_settings() -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    for name, kind in POLICIES.items():
        fields = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(kind))
        assert f"| `{name}` | {fields or '-'} |" in page


def test_every_column_of_a_run_folder_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    for table, schema in SCHEMAS.items():
        _, _, section = page.partition(f"## {table}.parquet")
        section = section.partition("\n## ")[0]
        missing = [name for name in schema.names if f"`{name}`" not in section]
        assert not missing, f"{table}: {', '.join(missing)}"


@pytest.mark.parametrize("text", [text for _, text in blocks("yaml")])
def test_studies_that_are_shown_can_be_read(text: str) -> None:
    make_study(yaml.safe_load(text))


def test_every_command_is_told_of() -> None:
    shown = {shown.words[1] for shown in COMMANDS if shown.words[0] == "specbranch" and len(shown.words) > 1}
    app: Any = command_of([])[0]
    assert set(app.commands) <= shown, f"no page shows {', '.join(sorted(set(app.commands) - shown))}"
