"""One stream of conversations that a target has with itself: what is given, what it samples, and when something ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from executor.distilled_draft.corpus import Role
from executor.distilled_draft.openings import Task, draw_follow_up, draw_opening
from executor.distilled_draft.settings import WritingPlan

_PROMPT_TOKENS, _PASSAGE_TOKENS, _FOLLOW_UP_TOKENS = (20, 60), (60, 160), 40
_ANSWER_TOKENS, _TEXT_TOKENS = 280, 160
_SECOND_TURN_SHARE = 0.35
_LOOP_TOKENS, _LOOP_ALLOWED = 24, 48  # a loop is learnt from for a while, since targets do loop, and then ended


@dataclass(frozen=True)
class Template:
    """A chat template as token ids. ends: tokens that end a message or a text.

    before, after: of the user's message; between: the answer and the next message. All empty without a template.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    ends: frozenset[int]
    first: tuple[int, ...]  # what a plain text begins with


def template_of(tokenizer: Any, ends: Collection[int]) -> Template:
    """The pieces of a tokenizer's chat template, found by applying it to marked messages."""
    start = tuple(sorted(ends)[:1])  # any text needs one token before it; an end says that nothing came before
    if not getattr(tokenizer, "chat_template", None):
        return Template((), (), (), frozenset(ends), start)
    user, answer, second = "<<user>>", "<<answer>>", "<<second>>"
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]
    once = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    twice = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    before, after = once.split(user)
    between = twice.split(answer)[1].split(second)[0]

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()

    return Template(ids(before), ids(after), ids(between), frozenset(ends), start)


class Conversations:
    """What a stream's next token is: `given` says it, or the caller samples it at `temperature` and tells it to `note`."""

    def __init__(self, tokenizer: Any, template: Template, plan: WritingPlan, rng: np.random.Generator) -> None:
        self._tokenizer, self._template, self._plan, self._rng = tokenizer, template, plan, rng
        self.fresh(0)

    def fresh(self, position: int) -> None:
        """A new conversation begins at a position of the stream."""
        template, rng = self._template, self._rng
        self.start, self._recent = position, list[int]()
        opening = draw_opening(rng, has_template=bool(template.before))
        self._own_temperature = float(rng.choice(self._plan.temperatures, p=self._plan.shares))
        is_text = opening.task is Task.TEXT
        self._given = [*(template.first if is_text else template.before), *self._ids(opening.text)]
        self.role = Role.TEXT if is_text else Role.PROMPT
        span = _PASSAGE_TOKENS if opening.task is Task.LONG else _PROMPT_TOKENS
        self._left = _TEXT_TOKENS if is_text else int(rng.integers(*span))
        self._has_second_turn = rng.random() < _SECOND_TURN_SHARE

    @property
    def temperature(self) -> float:
        """At which the next token is sampled; plain text never at 0, where it would be one text for each opening."""
        if self.role is Role.PROMPT:
            return self._plan.prompt_temperature
        return max(self._own_temperature, min(0.7, max(self._plan.temperatures)) if self.role is Role.TEXT else 0.0)

    def given(self) -> int | None:
        """The next token where it is not sampled; it counts as placed."""
        return self._given.pop(0) if self._given else None

    def note(self, token: int, position: int) -> None:
        """A sampled token stands at a position: a message may end with it, or the conversation."""
        template = self._template
        self._recent.append(token)
        self._left -= 1
        is_end = token in template.ends
        if self.role is Role.PROMPT and (is_end or self._left <= 0):
            self._go_on(template.after, token, Role.ANSWER, _ANSWER_TOKENS)
        elif self.role is Role.ANSWER and is_end and self._has_second_turn:
            self._has_second_turn = False
            self._go_on(template.between, token, Role.PROMPT, _FOLLOW_UP_TOKENS)
            self._given += self._ids(draw_follow_up(self._rng))
        elif self.role is not Role.PROMPT and (is_end or self._left <= 0 or self._loops()):
            self.fresh(position + 1)

    def _go_on(self, given: tuple[int, ...], token: int, role: Role, num_tokens: int) -> None:
        is_there = bool(given) and given[0] == token  # the target wrote the template's end itself
        self._given, self.role, self._left, self._recent = list(given[is_there:]), role, num_tokens, []

    def _loops(self) -> bool:
        recent = self._recent
        if len(recent) < 2 * _LOOP_ALLOWED or len(recent) % 16:
            return False
        tail = recent[-_LOOP_TOKENS:]
        return any(recent[first : first + _LOOP_TOKENS] == tail for first in range(len(recent) - _LOOP_ALLOWED))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []
