"""What the embedded pair reads: the standard library's sources, split by file into training and held-out parts.

The split hashes each file's path, so it is the same on every CPython; the bytes under a path differ by Python version.
Nothing here imports torch, so prompts are available to a program without models.
"""

import ast
import functools
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path

HELD_OUT_PERCENT = 6
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
# Near-deterministic tables and escaped prose would teach little and inflate acceptance (encodings/ is charmap tables).
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "encodings"})
EXCLUDED_FILES = frozenset({"pydoc_data/topics.py"})
BLOCK_COLUMNS = frozenset({0, 4})

MIN_PROMPT_CHARS = 110  # about 32 tokens at the 3.2 bytes a token of the pair's tokenizer
MAX_PROMPT_CHARS = 300  # about 96 tokens
MIN_REMAINDER_CHARS = 80  # a prompt leaves at least this much of its function to be written


class Part(Enum):
    """Which share of the standard library a file belongs to."""

    TRAINING = "training"
    TRAINING_TESTS = "training tests"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class SourceFile:
    """One Python source: its path relative to the standard library (with forward slashes) and its text."""

    relative_path: str
    text: str


@dataclass(frozen=True)
class Block:
    """A run of whole lines of one file: a function, the head of a class, or the statements between such definitions.

    name: qualified name of the definition that opens the block, None for other statements.
    is_function: the block opens with `def` or `async def`.
    """

    name: str | None
    is_function: bool
    text: str


@dataclass(frozen=True)
class Prompt:
    """The first lines of one function. `name` is unique within its part, such as "json/decoder.py:py_scanstring"."""

    name: str
    text: str


def is_held_out(relative_path: str) -> bool:
    """Whether a file is kept from training, by the hash of its path (about 6 % of files).

    >>> is_held_out("json/decoder.py")
    True
    """
    digest = hashlib.sha256(relative_path.encode()).hexdigest()
    return int(digest, 16) % 100 < HELD_OUT_PERCENT


def part_of(relative_path: str) -> Part | None:
    """The part that a file belongs to; None for a file that the pair never reads (held-out tests included).

    >>> part_of("test/test_json/test_decode.py"), part_of("encodings/cp437.py")
    (<Part.TRAINING_TESTS: 'training tests'>, None)
    """
    folders = set(relative_path.split("/")[:-1])
    is_generated = relative_path.rsplit("/", 1)[-1].startswith("_sysconfigdata")
    if folders & EXCLUDED_FOLDERS or relative_path in EXCLUDED_FILES or is_generated:
        return None
    if folders & TEST_FOLDERS:
        return None if is_held_out(relative_path) else Part.TRAINING_TESTS
    return Part.HELD_OUT if is_held_out(relative_path) else Part.TRAINING


def standard_library() -> Path:
    """Folder of the running Python's standard library sources."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(part: Part, *, root: Path | None = None) -> list[SourceFile]:
    """The files of one part, sorted by path; files that are not UTF-8 are left out.

    root: folder of a standard library; the running Python's by default. Installations without the library's tests
    give an empty list for Part.TRAINING_TESTS.
    """
    folder = standard_library() if root is None else root
    files = []
    for relative_path in _python_files(folder):
        if part_of(relative_path) is not part:
            continue
        try:
            files.append(SourceFile(relative_path, (folder / relative_path).read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a handful of tests are deliberately in other encodings
    if not files and part is not Part.TRAINING_TESTS:
        raise FileNotFoundError(
            f"no {part.value} sources under {folder}; the embedded pair's prompts need the .py files of the standard "
            "library, which some stripped installations ship only as bytecode."
        )
    return files


def _python_files(folder: Path) -> list[str]:
    """Relative paths, sorted folder by folder. Excluded folders are not looked into: site-packages may hold 10,000 files."""
    found: list[tuple[str, ...]] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS]
        parts = Path(place).relative_to(folder).parts
        found += [(*parts, name) for name in names if name.endswith(".py")]
    return ["/".join(parts) for parts in sorted(found)]


def split_into_blocks(text: str) -> list[Block]:
    """Cut a file into function-level blocks, in order; their texts concatenate to the file.

    A block starts at each definition at column 0 or 4 that is not inside a function (with its decorators and the
    comment lines directly above), and at the first other statement after such a definition. A file that does not
    parse is one block.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts: dict[int, tuple[str | None, bool]] = {0: (None, False)}
    for line_number, name, is_function in _block_starts(text):
        first = line_number - 1
        while first > 0 and _is_comment_above(lines[first - 1], lines[first]):
            first -= 1
        starts[first] = (name, is_function)
    edges = [*sorted(starts), len(lines)]
    return [Block(*starts[first], text="".join(lines[first:last])) for first, last in pairwise(edges) if last > first]


def held_out_prompts(num: int, *, seed: int = 0, root: Path | None = None) -> list[Prompt]:
    """The first `num` function openings of held-out modules, in an order fixed by `seed`.

    Each text is the signature and what follows it (docstring or first lines), cut at a line end, about 32 to 96
    tokens; tokenise it with the beginning-of-sequence token in front, as the pair's tokenizer does by itself.
    """
    return _choose_prompts(Part.HELD_OUT, num, seed, root)


def training_prompts(num: int, *, seed: int = 0, root: Path | None = None) -> list[Prompt]:
    """As held_out_prompts, from the modules that the pair was trained on: for calibration, never for evaluation."""
    return _choose_prompts(Part.TRAINING, num, seed, root)


def _choose_prompts(part: Part, num: int, seed: int, root: Path | None) -> list[Prompt]:
    prompts = _all_prompts(part, seed, standard_library() if root is None else root)
    if num > len(prompts):
        raise ValueError(
            f"{num} {part.value} prompts were asked for, but this Python's standard library yields {len(prompts)}."
        )
    return list(prompts[:num])


@functools.lru_cache(maxsize=4)  # a standard library does not change; parsing a part of it takes most of a second
def _all_prompts(part: Part, seed: int, root: Path) -> tuple[Prompt, ...]:
    prompts = [prompt for file in source_files(part, root=root) for prompt in _prompts_of(file, seed)]
    return tuple(sorted(prompts, key=lambda prompt: _hash_fraction(f"{seed}:order:{prompt.name}")))


def _prompts_of(file: SourceFile, seed: int) -> Iterator[Prompt]:
    seen: dict[str, int] = {}
    for block in split_into_blocks(file.text):
        if not block.is_function:
            continue
        base = f"{file.relative_path}:{block.name}"
        seen[base] = seen.get(base, 0) + 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"  # a property's setter shares its getter's name
        wanted_chars = MIN_PROMPT_CHARS + 0.6 * (MAX_PROMPT_CHARS - MIN_PROMPT_CHARS) * _hash_fraction(f"{seed}:{name}")
        text = _opening(block.text, wanted_chars)
        has_fair_length = MIN_PROMPT_CHARS <= len(text) <= MAX_PROMPT_CHARS
        if has_fair_length and len(block.text.rstrip()) - len(text) >= MIN_REMAINDER_CHARS:
            yield Prompt(name, text)


def _opening(text: str, wanted_chars: float) -> str:
    """The fewest leading lines that reach `wanted_chars`, not ending in a blank line."""
    opening = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        opening += line
        if len(opening) >= wanted_chars and line.strip():
            break
    return opening


def _hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on every machine and Python."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def _is_comment_above(above: str, line: str) -> bool:
    """Whether `above` is a comment line with the indentation of `line`."""
    is_comment = above.lstrip().startswith("#")
    return is_comment and len(above) - len(above.lstrip()) == len(line) - len(line.lstrip())


def _block_starts(text: str) -> Iterator[tuple[int, str | None, bool]]:
    """(line number from 1, qualified name of a definition or None, is a function) of each block but the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError):
            return
    yield from _starts_in_body(module.body, prefix="")


def _starts_in_body(body: list[ast.stmt], prefix: str) -> Iterator[tuple[int, str | None, bool]]:
    follows_definition = False
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if statement.col_offset in BLOCK_COLUMNS:
                decorators = [decorator.lineno for decorator in statement.decorator_list]
                name = prefix + statement.name
                is_function = not isinstance(statement, ast.ClassDef)
                yield min([statement.lineno, *decorators]), name, is_function
                if isinstance(statement, ast.ClassDef):
                    yield from _starts_in_body(statement.body, prefix=f"{name}.")
                follows_definition = True
        else:
            if follows_definition and statement.col_offset in BLOCK_COLUMNS:
                yield statement.lineno, None, False
            follows_definition = False
            for branch in ("body", "handlers", "orelse", "finalbody"):  # definitions under if, try and with
                for inner in getattr(statement, branch, []):
                    nested = inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
                    yield from _starts_in_body(nested, prefix)
