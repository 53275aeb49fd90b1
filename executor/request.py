"""What a user asks the executor for: prompts, limits, stops; and where a sequence of tokens ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from traces.schema import FinishReason, Sampling

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to decode.

    prompt_id: names the prompt across policies and runs. tokens: the prompt, at least one token.
    noise_key: with `seed` it keys the shared noise, so equal keys give equal tokens whatever the policy.
    stop_strings: generation ends at the token that completes one of them, in the text as a user sees it or in the one
    where special tokens are written out.
    """

    prompt_id: str
    tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    noise_key: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError(
                f"prompt {self.prompt_id} is empty; give at least one token (the tokenizer's bos will do)."
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, but got {self.max_new_tokens}.")
        check_stops(self.stop_strings)


def check_stops(stop_strings: Sequence[str]) -> None:
    """Raises ValueError for a stop string that would end every answer at once, or could never end one."""
    for stop in stop_strings:
        if not stop:
            raise ValueError("a stop string is empty, which would end every answer after one token: leave it out.")
        if REPLACEMENT in stop or any("\ud800" <= character <= "\udfff" for character in stop):
            raise ValueError(
                f"the stop string {stop!r} holds a character that stands for broken bytes, which no text of tokens "
                "settles on: give the text itself."
            )


class TextStream:
    """The text of tokens as they come, although a character may take several tokens and a token may add no text.

    A decoder is only sure of whole characters: what ends in a partial one is decoded again with the next token, together
    with the tokens of the last whole ones, so that a tokenizer's spaces and byte tokens come out as in the whole text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # those that the next decoding needs
        self._num_read = 0  # of them: tokens whose text was given as settled

    def push(self, token: int) -> tuple[str, bool]:
        """The text since the last settled character, and whether it is settled; otherwise the next push repeats it."""
        self._tokens.append(token)
        before, now = self._decode(self._tokens[: self._num_read]), self._decode(self._tokens)
        new = now[len(before) :]
        is_settled = bool(new) and not new.endswith(REPLACEMENT)
        if is_settled:
            self._tokens = self._tokens[self._num_read :]
            self._num_read = len(self._tokens)
        return new, is_settled


class StopFinder:
    """Looks for stop strings in a text that grows by one token at a time."""

    def __init__(self, stops: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self._stops, self._stream = stops, TextStream(decode)
        self._longest = max(map(len, stops), default=0)
        self._text = ""  # the end of the settled text: where a stop string may have begun

    def push(self, token: int) -> bool:
        """Whether the text now holds a stop string that it did not hold before this token."""
        new, is_settled = self._stream.push(token)
        text = self._text + new
        if is_settled:
            self._text = text[-self._longest :]
        return any(stop in text for stop in self._stops)


class EndFinder:
    """Finds where a request ends as tokens are committed: EOS, a stop string, or the token limit.

    decode: the text of tokens as a user sees it; decode_whole: the text with special tokens written out, so that one of
    them can be a stop, too. It reads every token once: what `find` emits must be what is generated next.
    """

    def __init__(
        self,
        request: Request,
        eos_ids: frozenset[int],
        decode: Callable[[list[int]], str],
        decode_whole: Callable[[list[int]], str] | None = None,
    ) -> None:
        self._max_new_tokens = request.max_new_tokens
        self._eos_ids = frozenset() if request.ignore_eos else eos_ids
        decoders = [decode] if decode_whole is None else [decode, decode_whole]
        self._finders = [StopFinder(request.stop_strings, each) for each in decoders if request.stop_strings]

    def find(self, num_generated: int, new: Sequence[int]) -> tuple[int, FinishReason | None]:
        """How many of the `new` tokens are emitted after the generated ones, and why the request ends, if it does."""
        room = self._max_new_tokens - num_generated
        for index, token in enumerate(new[:room], 1):
            if token in self._eos_ids:
                return index, FinishReason.EOS
            if any([finder.push(token) for finder in self._finders]):  # a list: each of them reads every token
                return index, FinishReason.STOP_STRING
        if len(new) >= room:
            return room, FinishReason.MAX_TOKENS
        return len(new), None


def trim_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string, as serving engines return it."""
    ends = [at for stop in stop_strings if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
