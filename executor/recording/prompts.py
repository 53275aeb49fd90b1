"""Where prompts come from: the embedded pair's held-out functions, or a JSON-lines file of anybody's."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from executor.embedded_pair.corpus import held_out_prompts, training_prompts
from executor.recording.questions import questions
from executor.recording.settings import PromptForm
from traces.mistakes import TwiceError, unique_json

QUESTION_FIELDS = ("question", "turns")  # their texts are said to somebody, those of the others are to be continued
FIELDS = ("prompt", "text", "question", "turns", "messages")
MAX_LINE_BYTES = 32 << 20  # a file without line ends is not a prompt
# Of a message: what templates write into the prompt, too, so that without it another prompt would be measured.
_BEYOND_TEXT = ("tool_calls", "tool_call_id", "function_call", "name", "reasoning_content")
_HINT = 'write one JSON object a line, such as {"prompt": "def one():"}'


class PromptText(NamedTuple):
    """A prompt and the name it keeps across runs.

    text: as given; of tokens and messages their JSON form. tokens: of a prompt that is given in tokens.
    messages: of a conversation, (role, content) each, which the model's chat template turns into text.
    is_question: whether a text stood in a field of questions or turns.
    """

    prompt_id: str
    text: str
    tokens: tuple[int, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    is_question: bool = False


def load_prompts(source: str, num: int, *, skip: int = 0) -> list[PromptText]:
    """`num` prompts after the first `skip`. Raises ValueError with file and line for what is not a prompt.

    source: "held_out" or "training" (functions of the standard library that the embedded pair did not, or did, train on),
    "questions" (`executor.recording.questions`),
    or a .jsonl or .jsonl.gz file in UTF-8 whose lines have a field prompt, text, question, turns or messages: a text,
    a list of token ids, or messages, which are objects with role and content. Of turns that are texts the first is taken.
    A file is read as far as prompts are needed: a packed one that is cut short is refused where they reach its end.
    """
    if num < 1:
        raise ValueError(f"num_prompts must be at least 1, but got {num}.")
    if skip < 0:
        raise ValueError(f"skip_prompts must be at least 0, but got {skip}.")
    if source in ("held_out", "training"):
        choose = held_out_prompts if source == "held_out" else training_prompts
        prompts = [PromptText(prompt.name, prompt.text) for prompt in choose(skip + num)][skip:]
    elif source == "questions":
        prompts = [PromptText(name, text, is_question=True) for name, text in questions()[skip : skip + num]]
    else:
        prompts = _read_file(Path(source), skip + num)[skip:]
    if len(prompts) < num:
        raise ValueError(
            f"{source} holds {skip + len(prompts)} prompts, but {skip + num} were asked for: ask for fewer (num_prompts, "
            "skip_prompts), or name a longer file."
        )
    return prompts


def settled_form(form: PromptForm, tokenizer: Any, prompts: Sequence[PromptText]) -> PromptForm:
    """Chat or raw, also where the choice is left to us."""
    if form is not PromptForm.AUTO:
        return form
    texts = [prompt for prompt in prompts if not prompt.tokens and not prompt.messages]
    is_chat = _template_of(tokenizer) and texts and all(prompt.is_question for prompt in texts)
    return PromptForm.CHAT if is_chat else PromptForm.RAW


def encode_prompt(tokenizer: Any, prompt: PromptText, form: PromptForm) -> tuple[int, ...]:
    """Token ids, at least one. tokenizer: a transformers tokenizer; for messages one with a chat template.

    form: chat or raw, of a prompt that is a text (`settled_form`). Raises ValueError where the tokenizer cannot make tokens of
    the prompt.
    """
    if prompt.tokens:
        num_tokens = max(tokenizer.get_vocab().values()) + 1
        if (largest := max(prompt.tokens)) >= num_tokens:
            raise ValueError(
                f"{prompt.prompt_id}: token {largest} is not one of the model's {num_tokens} tokens: were these ids made "
                "with another tokenizer?"
            )
        return prompt.tokens
    messages = prompt.messages or ((("user", prompt.text),) if form is PromptForm.CHAT else ())
    tokens = tuple(
        _encode_messages(tokenizer, prompt.prompt_id, messages) if messages else tokenizer.encode(prompt.text)
    )
    if not tokens:
        raise ValueError(
            f"{prompt.prompt_id}: the prompt is empty, and this tokenizer adds no first token: give a text."
        )
    return tokens


def _template_of(tokenizer: Any) -> Any:
    return getattr(tokenizer, "chat_template", None)


def _encode_messages(tokenizer: Any, prompt_id: str, messages: Sequence[tuple[str, str]]) -> list[int]:
    if not _template_of(tokenizer):
        raise ValueError(
            f"{prompt_id}: the prompt is given as messages, but the target's tokenizer has no chat template: give plain text "
            "(raw), or a model that was trained to chat."
        )
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer.encode(text, add_special_tokens=False))  # the template writes them itself
    except Exception as error:  # a template is code of the model's: it refuses in many ways
        raise ValueError(f"{prompt_id}: the model's chat template refuses these messages ({error}).") from error


def _read_file(path: Path, num: int) -> list[PromptText]:
    if not path.is_file():
        raise ValueError(f"no prompts at {path}; name a .jsonl file, or held_out, training or questions.")
    prompts: list[PromptText] = []
    for number, line in _lines(path):
        if len(prompts) == num:
            break
        if line.strip():
            prompts.append(_prompt_of(line, f"{path}, line {number}", f"{path.name}:{number}"))
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of UTF-8, numbered from 1; a byte-order mark before them is left out."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise ValueError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB: {_HINT}.")
                yield number, _decoded(line, f"{path}, line {number}").removeprefix("\ufeff" if number == 1 else "")
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}, line {number + 1}: not gzip data ({error}): pack it again, or name it .jsonl."
        ) from error
    except EOFError as error:
        raise ValueError(
            f"{path}, line {number + 1}: the gzip data is cut short: copy or pack the file again."
        ) from error


def _decoded(line: bytes, place: str) -> str:
    if line.startswith(b"\x1f\x8b"):
        raise ValueError(f"{place}: this is gzip data: give the file a name that ends in .gz.")
    if b"\0" in line:  # in UTF-8, JSON writes this character as \\u0000
        raise ValueError(
            f"{place}: not UTF-8 but UTF-16 or UTF-32, to judge by its zero bytes: convert the file to UTF-8; where it was "
            "UTF-8 once, it is damaged."
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        is_marked = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = "UTF-16" if is_marked else "Latin-1 or Windows-1252, perhaps"
        byte = line[error.start]
        raise ValueError(
            f"{place}: not UTF-8 (byte 0x{byte:02x} at {error.start}) but {guess}: convert the file to UTF-8."
        ) from None


def _prompt_of(line: str, place: str, prompt_id: str) -> PromptText:
    """One line as a prompt."""
    try:
        row = unique_json(line)
    except TwiceError as error:
        raise ValueError(f"{place}: the field {error}") from None
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error}): {_HINT}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {_named(row)} where an object is wanted: {_HINT}.")
    field = next((field for field in FIELDS if field in row), None)
    if field is None:
        raise ValueError(f"{place}: no field {', '.join(FIELDS[:-1])} or {FIELDS[-1]}: {_HINT}.")
    value = row[field]
    if field == "turns" and isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        value = value[0]
    if isinstance(value, str):
        text = _checked(value, f"{place}, field {field}")
        return PromptText(prompt_id, text, is_question=field in QUESTION_FIELDS)
    if isinstance(value, list) and value and all(isinstance(token, int) for token in value):
        if any(isinstance(token, bool) or token < 0 for token in value):
            raise ValueError(f"{place}, field {field}: token ids are whole numbers from 0 on.")
        return PromptText(prompt_id, json.dumps(value), tokens=tuple(value))
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        messages = tuple(_message_of(turn, f"{place}, field {field}") for turn in value)
        if messages[-1][0] == "assistant":
            raise ValueError(
                f"{place}, field {field}: the last message is the assistant's: leave out what is to be answered."
            )
        return PromptText(prompt_id, json.dumps(messages), messages=messages)
    raise ValueError(
        f"{place}, field {field}: {_named(value)} is not a prompt: give a text, a list of token ids, or a list of messages "
        "with role and content."
    )


def _message_of(turn: dict[str, Any], place: str) -> tuple[str, str]:
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{place}: a message needs role and content, both texts, but has {_named(turn)}.")
    if told := [name for name in _BEYOND_TEXT if turn.get(name)]:
        raise ValueError(
            f"{place}: a message has {told[0]} ({_named(turn[told[0]])}), which is not given to the chat template here: give "
            "the conversation as text, as the template writes it."
        )
    return _checked(role, place), _checked(content, place)


def _checked(text: str, place: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{place}: the text holds half of a surrogate pair, which is not a character: write it whole.")
    return text


def _named(value: object) -> str:
    """A value as a reader finds it in the file, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
