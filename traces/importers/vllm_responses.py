"""Responses of a vLLM server that say how many drafted tokens each step accepted: JSON lines, one response body a line.

The server runs with `--per-request-spec-decode-metrics detailed` (vLLM pull request 48915); these fields are read, all others
left alone:

    {"id": "cmpl-1", "choices": [{"finish_reason": "length"}],
     "usage": {"prompt_tokens": 120, "completion_tokens": 57},
     "metrics": {"speculative_decoding": {"per_step_accepted": [2, 0, 3], "per_step_drafted": [3, 3, 3]}},
     "prompt_id": "chat-17", "temperature": 0.0}

A response does not say what was asked: whoever saves it may add prompt_id (the id of the response otherwise) and temperature.

From counts to ranks. The prefill gives the first token, which no draft could have proposed: it counts to the context. Then a
step that accepts a of d drafted tokens emits a + 1 tokens:

    a times rank 0         the draft's token was accepted
    a < d: rank 1 or more  the draft's next token was rejected; which of its tokens the target's was, nobody wrote down
    a = d: unknown         the target's own token after a whole accepted draft; nobody asked the draft about it

What such a trace cannot answer, then:

- how far a longer draft would have been accepted: the first token after every whole accepted draft is unknown (`Unseen` bounds
  it), and a shorter draft also meets these tokens, in the midst of its own;
- policies that hedge more than the draft's best token (known_ranks is 1), and those that read signals or classes;
- tokens of steps without a draft: vLLM leaves these steps out, so where they were is unknown, and so are theirs;
- anything exact at a temperature above 0: the server accepts by the ratio rule, with draft tokens drawn anew for each draft.
  Its acceptances are a sample of what another draft length would meet, not the very outcomes that shared noise would give.

A replay with the recorded draft length gives the recorded steps, whatever is taken for the unknown ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from traces.importers.base import ForeignRequest, ForeignTraceError, ImportedTraces, numbered_lines, parsed_line
from traces.schema import FinishReason

FINISH_REASONS = {"length": FinishReason.MAX_TOKENS}  # "stop" may be the end token or a stop string: unknown

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class _Steps:
    per_step_accepted: list[Count]
    per_step_drafted: list[Count]
    num_spec_steps: Count | None = None


@dataclass(frozen=True)
class _Metrics:
    speculative_decoding: _Steps


@dataclass(frozen=True)
class _Usage:
    prompt_tokens: Count
    completion_tokens: Count


@dataclass(frozen=True)
class _Choice:
    finish_reason: str | None = None


@dataclass(frozen=True)
class _Response:
    id: str
    usage: _Usage
    metrics: _Metrics
    choices: list[_Choice] = field(default_factory=list)
    prompt_id: str | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


_RESPONSE = TypeAdapter(_Response)
_EXPECTED = "a response of vLLM with --per-request-spec-decode-metrics detailed"


class VllmResponses:
    """The reader of this format."""

    format = "JSON lines of vLLM responses with metrics.speculative_decoding.per_step_accepted"

    def recognises(self, first_line: bytes) -> bool:
        return b'"speculative_decoding"' in first_line

    def read(self, path: Path, *, temperature: float | None) -> ImportedTraces:
        """Raises ForeignTraceError with file and line where a line is not such a response or contradicts itself."""
        requests, num_skipped, num_omitted = [], 0, 0
        for where, line in numbered_lines(path):
            response = parsed_line(_RESPONSE, where, line, expected=_EXPECTED, strict=True)
            ranks, omitted = _ranks_of(where, response)
            num_omitted += omitted
            if not ranks:
                num_skipped += 1
                continue
            requests.append(
                ForeignRequest(
                    prompt_id=response.prompt_id or response.id,
                    num_context_tokens=response.usage.prompt_tokens + 1,
                    ranks=ranks,
                    temperature=temperature if response.temperature is None else response.temperature,
                    finish_reason=FINISH_REASONS.get(response.choices[0].finish_reason or "")
                    if response.choices
                    else None,
                )
            )
        if not requests:
            raise ForeignTraceError(f"{path} holds no request with a drafted step; record with speculation on.")
        read = ImportedTraces(source=path, format=self.format, requests=tuple(requests), known_ranks=1)
        limits = [
            f"{read.unseen_share:.0%} of the tokens followed a whole accepted draft: nobody asked the draft about them",
            "of a rejected token only the rejection is known, so that policies that hedge several tokens are refused",
        ]
        if num_omitted:
            limits.append(f"{num_omitted} tokens came from steps without a draft, at unknown places, and are left out")
        if num_skipped:
            limits.append(f"{num_skipped} requests without a drafted step are left out")
        if any(request.temperature for request in requests):
            limits.append("above temperature 0, acceptance is a sample of what other draft lengths would meet")
        return replace(read, limits=tuple(limits))


def _ranks_of(where: str, response: _Response) -> tuple[tuple[int | None, ...], int]:
    """Ranks of the tokens after the first, and how many tokens came from steps that were left out.

    A request may end within its last step, whose further tokens were then not emitted.
    """
    steps = response.metrics.speculative_decoding
    accepted, drafted = steps.per_step_accepted, steps.per_step_drafted
    if len(accepted) != len(drafted) or steps.num_spec_steps not in (None, len(accepted)):
        raise ForeignTraceError(
            f"{where}: {len(accepted)} entries in per_step_accepted, {len(drafted)} in per_step_drafted and "
            f"{steps.num_spec_steps} num_spec_steps; these must be equal, so the line is damaged."
        )
    ranks: list[int | None] = []
    for step, (num_accepted, num_drafted) in enumerate(zip(accepted, drafted, strict=True)):
        if num_accepted > num_drafted:
            raise ForeignTraceError(f"{where}: step {step} accepts {num_accepted} of {num_drafted} drafted tokens.")
        ranks += [0] * num_accepted + [None if num_accepted == num_drafted else 1]
    num_after_first = max(0, response.usage.completion_tokens - 1)
    num_cut = len(ranks) - num_after_first
    if num_cut > (accepted[-1] if accepted else 0):
        raise ForeignTraceError(
            f"{where}: the steps emit {len(ranks)} tokens after the first, but completion_tokens is "
            f"{response.usage.completion_tokens}; more are left over than the last step could have lost."
        )
    return tuple(ranks[:num_after_first]), max(0, -num_cut)
