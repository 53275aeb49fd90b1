"""Prompts of every shape: measured as what they are, or refused with file and line before any model is asked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from executor.recording.prompts import encode_prompt, load_prompts, settled_form
from executor.recording.questions import NUM_QUESTIONS
from executor.recording.settings import PromptForm

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases" / "prompts"


class _Tokenizer:
    """One token a character; the template writes roles in angle brackets."""

    chat_template: str | None = "a template"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(character) for character in text]

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(200)}

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: Any) -> str:
        assert settings == {"add_generation_prompt": True, "tokenize": False}
        if messages[0]["role"] == "tool":
            raise RuntimeError("roles must alternate")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def _file(folder: Path, *rows: object, name: str = "p.jsonl") -> str:
    path = folder / name
    data = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


MESSAGES = [{"role": "user", "content": "hi"}]
LONGER = [{"role": "system", "content": "be brief"}, *MESSAGES, {"role": "assistant", "content": "yes"}, *MESSAGES]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": MESSAGES}, "<user>hi<assistant>"),
        ({"messages": MESSAGES}, "<user>hi<assistant>"),
        ({"turns": MESSAGES}, "<user>hi<assistant>"),
        ({"question": LONGER}, "<system>be brief<user>hi<assistant>yes<user>hi<assistant>"),
    ],
)
def test_messages_go_through_the_chat_template(tmp_path: Path, row: object, text: str) -> None:
    (prompt,) = load_prompts(_file(tmp_path, row), 1)
    assert encode_prompt(_Tokenizer(), prompt, PromptForm.RAW) == tuple(map(ord, text))


QUESTIONS = [{"question": "5?"}, {"turns": ["a", "b"]}]


@pytest.mark.parametrize(
    ("rows", "has_template", "form"),
    [
        (QUESTIONS, True, PromptForm.CHAT),
        (QUESTIONS, False, PromptForm.RAW),
        ([*QUESTIONS, {"prompt": [1, 2]}, {"messages": MESSAGES}], True, PromptForm.CHAT),
        ([*QUESTIONS, {"prompt": "def one():"}], True, PromptForm.RAW),
        ([{"text": "once"}], True, PromptForm.RAW),
        ([{"messages": MESSAGES}], True, PromptForm.RAW),
    ],
)
def test_questions_are_chat_where_the_model_has_a_template(
    tmp_path: Path, rows: list[object], has_template: bool, form: PromptForm
) -> None:
    tokenizer = _Tokenizer()
    tokenizer.chat_template = "a template" if has_template else None
    prompts = load_prompts(_file(tmp_path, *rows), len(rows))
    assert settled_form(PromptForm.AUTO, tokenizer, prompts) is form
    for asked in (PromptForm.CHAT, PromptForm.RAW):
        assert settled_form(asked, tokenizer, prompts) is asked


def test_a_text_is_a_message_of_the_user_where_chat_is_asked_for(tmp_path: Path) -> None:
    text, tokens = load_prompts(_file(tmp_path, {"text": "ab"}, {"prompt": [7, 8]}), 2)
    assert encode_prompt(_Tokenizer(), text, PromptForm.CHAT) == tuple(map(ord, "<user>ab<assistant>"))
    assert encode_prompt(_Tokenizer(), tokens, PromptForm.CHAT) == (7, 8)
    mute = _Tokenizer()
    mute.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(mute, text, PromptForm.CHAT)


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        ({"prompt": [5, 9, 12, 40]}, (5, 9, 12, 40)),
        ({"turns": [0]}, (0,)),
        ({"prompt": "ab"}, (1, 97, 98)),
        ({"prompt": ""}, (1,)),
        ({"turns": ["ab", "cd"]}, (1, 97, 98)),
        ({"id": 3, "text": "a\0"}, (1, 97, 0)),
        ({"question": "5"}, (1, 53)),
    ],
)
def test_tokens_are_tokens_and_texts_are_texts(tmp_path: Path, row: object, tokens: tuple[int, ...]) -> None:
    (prompt,) = load_prompts(_file(tmp_path, row), 1)
    assert encode_prompt(_Tokenizer(), prompt, PromptForm.RAW) == tokens


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": None},
        {"prompt": None, "text": "def one():"},
        {"prompt": 5},
        {"prompt": 1.5},
        {"prompt": True},
        {"prompt": {"role": "user", "content": "hi"}},
        {"prompt": []},
        {"prompt": ["two", "texts"]},
        {"prompt": [5, "nine"]},
        {"prompt": [5, -1]},
        {"prompt": [5.0, 6.0]},
        {"prompt": [True, False]},
        {"prompt": [[1, 2], [3, 4]]},
        {"turns": []},
        {"turns": [["a"]]},
        {"turns": [{"role": "user"}]},
        {"turns": [{"role": "user", "content": None}]},
        {"messages": [{"role": 1, "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "ok"}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}, *MESSAGES]},
        {"messages": [{"role": "user", "content": "hi", "name": "ann"}]},
        {"messages": [{"from": "human", "value": "hi"}]},
        {"turns": ["a", {"role": "user", "content": "b"}]},
        {"prompt": float("nan")},
        {"messages": "\ud83d"},
        {"messages": [{"role": "user", "content": "\udc00"}]},
        {"text": "half \ud83d"},
        {"conversation": MESSAGES},
        {},
        "a string",
        ["a", "list"],
        5,
        None,
        b'{"prompt": "a", "prompt": "b"}',
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        b'{"prompt": "a"} {"prompt": "b"}',
        b"{'prompt': 'a'}",
        b"\0\0\0",
        b"prompt,text",
        b"{\n",
        b'{"prompt": "cut',
        b"[" * 100_000,
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": "\xed\xa0\xbd"}',
    ],
)
def test_everything_else_is_refused_with_file_and_line(tmp_path: Path, row: object) -> None:
    source = _file(tmp_path, {"prompt": "fine"}, b"", row)
    with pytest.raises(ValueError, match=r"p\.jsonl, line 3: |p\.jsonl, line 3, ") as refusal:
        load_prompts(source, 2)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ('{"prompt": "a"}\n'.encode("utf-16"), "UTF-16"),
        ('{"prompt": "a"}\n'.encode("utf-16-be"), "UTF-16"),
        ('{"prompt": "a"}\n'.encode("utf-16-le"), "UTF-16"),
        ('{"prompt": "a"}\n'.encode("utf-32"), "UTF-32"),
        (gzip.compress(b'{"prompt": "a"}\n', mtime=0), r"gzip data: give the file a name that ends in \.gz"),
        ('{"prompt": "\u00e9"}\n'.encode("latin-1"), "Latin-1"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, data: bytes, named: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=f"line 1: .*({named})"):
        load_prompts(str(tmp_path / "p.jsonl"), 1)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_marks_blank_lines_and_line_ends_are_no_matter(tmp_path: Path, name: str) -> None:
    source = _file(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r', b"", b"  \r", b'{"prompt": "b"}', b"", name=name)
    assert [prompt.text for prompt in load_prompts(source, 2)] == ["a", "b"]
    assert load_prompts(source, 1, skip=1)[0].prompt_id == f"{name}:4"


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(b'{"prompt": "a"}\n' * 9, mtime=0)[:-12]])
def test_broken_gzip_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(data)
    with pytest.raises(ValueError, match="gzip"):
        load_prompts(str(tmp_path / "p.jsonl.gz"), 20)


ROWS = [json.dumps({"prompt": f"def f{number * 7919}(x): return {number**5}"}).encode() for number in range(200)]
PACKED = gzip.compress(b"\n".join(ROWS) + b"\n", mtime=0)


@pytest.mark.parametrize("num_bytes", [0, 9, 12, 200, len(PACKED) // 2, len(PACKED) - 9, len(PACKED) - 4])
def test_a_torn_file_gives_all_prompts_that_were_asked_for_or_none(tmp_path: Path, num_bytes: int) -> None:
    """It is read as far as prompts are needed; where they reach its end it is refused, never taken for a shorter one."""
    (tmp_path / "p.jsonl.gz").write_bytes(PACKED[:num_bytes])
    wanted = [json.loads(row)["prompt"] for row in ROWS]
    for num in (1, 3, 50, 199, 200, 201):
        told = ""
        try:
            prompts = load_prompts(str(tmp_path / "p.jsonl.gz"), num)
        except ValueError as error:
            told = str(error)
        assert told or [prompt.text for prompt in prompts] == wanted[:num]
        assert not told or ("cut short" if num_bytes else "holds 0 prompts") in told
        assert "\n" not in told
    assert told, "more were asked for than it holds"


@pytest.mark.parametrize("data", [PACKED + b"more", PACKED[:-8] + bytes(4) + PACKED[-4:]], ids=["behind", "checksum"])
def test_damage_at_the_end_of_a_packed_file_is_refused_where_it_is_reached(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(data)
    assert len(load_prompts(str(tmp_path / "p.jsonl.gz"), 20)) == 20
    for num in (200, 201):
        with pytest.raises(ValueError, match=r"p\.jsonl\.gz, line 201: not gzip data"):
            load_prompts(str(tmp_path / "p.jsonl.gz"), num)


def test_a_pack_of_two_packs_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(PACKED + PACKED + bytes(512))
    assert len(load_prompts(str(tmp_path / "p.jsonl.gz"), 400)) == 400
    with pytest.raises(ValueError, match="holds 400 prompts, but 401 were asked for: ask for fewer"):
        load_prompts(str(tmp_path / "p.jsonl.gz"), 401)


def test_what_the_model_cannot_take_is_refused_by_the_prompts_name(tmp_path: Path) -> None:
    silent, plain = _Tokenizer(), _Tokenizer()
    silent.chat_template = None
    plain.encode = lambda text: []  # type: ignore[assignment]  # a tokenizer that adds no first token
    rows = [{"prompt": MESSAGES}, {"prompt": ""}, {"prompt": [200]}, {"prompt": [{"role": "tool", "content": ""}]}]
    chat, empty, tokens, alone = load_prompts(_file(tmp_path, *rows), 4)
    for tokenizer, prompt, reason in [
        (silent, chat, "p.jsonl:1: .*no chat template"),
        (plain, empty, "p.jsonl:2: .*empty"),
        (plain, tokens, "p.jsonl:3: token 200"),
        (_Tokenizer(), alone, "p.jsonl:4: .*refuses these messages .roles must alternate"),
    ]:
        with pytest.raises(ValueError, match=reason):
            encode_prompt(tokenizer, prompt, PromptForm.RAW)


@pytest.mark.skipif(not CASES.is_dir(), reason="the inputs of issue 10 are not on this machine")
@pytest.mark.parametrize("path", sorted(CASES.glob("*")), ids=lambda path: path.name)
def test_the_files_of_the_issue(path: Path) -> None:
    refused = {"null", "string_row", "turns_empty", "surrogate", "array", "pretty", "csv", "notgz", "latin1", "utf16"}
    if path.name.split(".")[0] in refused:
        with pytest.raises(ValueError, match=f"{path.name}, line 1"):
            load_prompts(str(path), 1)
    else:
        (prompt,) = load_prompts(str(path), 1)
        assert "{'" not in prompt.text


def test_shipped_questions_are_asked_of_somebody() -> None:
    first, second = load_prompts("questions", 2, skip=8)
    assert first.prompt_id == "question:explain:1"
    assert first.is_question
    assert first.text != second.text
    assert len({prompt.text for prompt in load_prompts("questions", NUM_QUESTIONS)}) == NUM_QUESTIONS == 96
    with pytest.raises(ValueError, match="questions holds 96 prompts, but 97 were asked for"):
        load_prompts("questions", 97)
