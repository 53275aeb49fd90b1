"""What a user asks the executor for: prompts, limits, stops; and where a sequence of tokens ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from traces.schema import FinishReason, Sampling


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to decode.

    prompt_id: names the prompt across policies and runs. tokens: the prompt, at least one token.
    noise_key: with `seed` it keys the shared noise, so equal keys give equal tokens whatever the policy.
    stop_strings: generation ends at the token that completes one of them.
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


class EndFinder:
    """Finds where a request ends as tokens are committed: EOS, a stop string, or the token limit."""

    def __init__(self, request: Request, eos_ids: frozenset[int], decode: Callable[[list[int]], str]) -> None:
        self._max_new_tokens = request.max_new_tokens
        self._eos_ids = frozenset() if request.ignore_eos else eos_ids
        self._stops = request.stop_strings
        self._decode = decode

    def find(self, generated: Sequence[int], new: Sequence[int]) -> tuple[int, FinishReason | None]:
        """How many of the `new` tokens are emitted after the `generated` ones, and why the request ends, if it does."""
        room = self._max_new_tokens - len(generated)
        for index, token in enumerate(new[:room], 1):
            if token in self._eos_ids:
                return index, FinishReason.EOS
            if self._stops and self._stops_at([*generated, *new[:index]]):
                return index, FinishReason.STOP_STRING
        if len(new) >= room:
            return room, FinishReason.MAX_TOKENS
        return len(new), None

    def _stops_at(self, tokens: list[int]) -> bool:
        # Earlier tokens were tested before, so a stop string must end in the text of the newest one; a window of tokens
        # is decoded, long enough because every token but a partial character gives at least one character.
        window = max(len(stop) for stop in self._stops) + 8
        text = self._decode(tokens[-window:])
        return any(stop in text for stop in self._stops)


def trim_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string, as serving engines return it."""
    ends = [at for stop in stop_strings if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
