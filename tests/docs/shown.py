"""What README.md and docs/ show: blocks of code, commands, and names of files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:specbranch|pytest|python|mkdocs) [^`]+)`")


class Shown(NamedTuple):
    """page: its name. words: a command, split as a shell does."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of all blocks of a language, in the order of the pages."""
    return [
        (page.name, text)
        for page in PAGES
        for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == language
    ]


def shell_commands() -> list[Shown]:
    """Every command in shell blocks; comments and what follows a pipe, a semicolon or && apart."""
    shown = []
    for page, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|;&"):
                    shown += [Shown(page, tuple(words))] if words else []
                    words = []
                else:
                    words.append(word)
    return shown


def inline_commands() -> list[Shown]:
    """Commands in the text, which may leave out what they need."""
    return [
        Shown(page.name, tuple(words))
        for page in PAGES
        for text in _INLINE.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
        if (words := shlex.split(" ".join(text.split())))
    ]
