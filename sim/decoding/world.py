"""A world answers the step machine's commands, and `drive` lets them meet: one loop for models, simulator, replay, proofs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sim.decoding.machine import ClassProbs, Command, Keep, Reply, Settle, Timed, decode
from sim.decoding.policies.base import Policy


class World(Protocol):
    """Where one request is decoded: it knows what comes of each command."""

    @property
    def first_classes(self) -> ClassProbs | None:
        """H-RAD's prediction after the prefill, if one runs."""
        ...

    def answer(self, command: Command) -> Reply:
        """What came of a command; `sim.decoding.machine.decode` says what each one is answered by."""
        ...


def drive(
    policy: Policy, world: World, *, request_id: int, max_new_tokens: int, num_prompt_tokens: int = 1
) -> Iterator[Timed]:
    """Decode one request: each command that takes time, once the world has answered it and before the machine goes on.

    So whoever iterates may spend time, simulated or real, between an answer and the next command.
    """
    machine = decode(
        policy,
        request_id=request_id,
        max_new_tokens=max_new_tokens,
        num_prompt_tokens=num_prompt_tokens,
        class_probs=world.first_classes,
    )
    answer, send = world.answer, machine.send
    reply: Reply = None
    while True:
        try:
            command = send(reply)
        except StopIteration:
            return
        reply = answer(command)
        if type(command) is not Settle and type(command) is not Keep:
            yield command
