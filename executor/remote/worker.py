"""The target's process: verifies pending tokens and says what comes next. Started by `executor.remote.client`.

It owns the target model and its cache and nothing else. It takes commands from a channel, and answers with the outcome
(number accepted, next token); token ids and a few numbers cross, never a row of the vocabulary.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import torch

from executor.errors import message_of
from executor.models.settings import PairSettings
from executor.models.sources.base import resolve_device
from executor.remote.channel import Channel, Message
from executor.remote.messages import (
    WORKER_SETTINGS,
    Opcode,
    prefill_message,
    read_begin,
    read_score,
    read_verify,
    verdict_message,
)
from executor.remote.transport import open_channel
from executor.resident.engine import ResidentEngine
from executor.resident.shared import SharedDevice
from executor.resident.target import GraphTarget
from executor.roles.target import Target
from executor.roles.target_side import TargetSide, load_target
from traces.processes import clear_after


def main() -> None:
    """Serve one parent until it says stop or disappears."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: it is the parent that ends us
    pipe = Connection(int(sys.argv[1]))
    try:
        settings = WORKER_SETTINGS.validate_json(pipe.recv_bytes())
    except (EOFError, ConnectionError):  # started ahead, and never needed
        return
    pair, meeting_place = settings.pair, settings.meeting_place
    if settings.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {settings.core})
    torch.set_num_threads(1)
    clear_after(meeting_place)
    channel: Channel | None = None
    try:
        with torch.inference_mode():
            devices = (resolve_device(pair.engine.device), resolve_device(pair.target_engine.device))
            if devices[1].type == "cuda":
                torch.cuda.set_device(devices[1])
            target = _load(pair)
            pipe.send({"loaded": True, "layouts": dict(target.layouts)})  # now both sides open the channel
            channel = open_channel(pair.transport, meeting_place, 1, devices, core=settings.core)
            _serve(target, channel, pipe)
            target.close()
            channel.close()
    except ConnectionError:  # the parent is gone, or has closed its end, which means stop
        shutil.rmtree(meeting_place, ignore_errors=True)
    except BaseException as error:
        pipe.send({"error": message_of(error), "traceback": traceback.format_exc()})
        if channel is not None:
            channel.post(Message(Opcode.FAILED))
        raise


def _load(pair: PairSettings) -> Target:
    """The target as its engine wants to be run."""
    engine, predictor = load_target(pair)
    if not isinstance(engine, ResidentEngine):
        return TargetSide(engine, predictor)
    alone = SharedDevice.of(engine, is_shared=False)
    return GraphTarget(engine, alone, predictor=predictor, fixed_width=pair.verify_width or None)


def _serve(target: Target, channel: Channel, pipe: Connection) -> None:
    while True:
        message = channel.wait()
        if message.opcode == Opcode.VERIFY:
            num_cached, last, pending = read_verify(message)
            target.submit(pending, last=last, num_cached=num_cached)
            channel.post(verdict_message(target.wait_verdict(), target.num_captures))
        elif message.opcode == Opcode.BEGIN:
            request, predicts = read_begin(message)
            target.begin(request, predicts=predicts)
            channel.post(prefill_message(target.wait_prefill(), target.num_captures))
        elif message.opcode == Opcode.SCORE:
            channel.post(Message(Opcode.DONE))
            num_prompt, sampling, tokens = read_score(message)
            for chunk in target.score(tokens, num_prompt, sampling):
                pipe.send({"scores": chunk})
        elif message.opcode == Opcode.STOP:
            return


if __name__ == "__main__":
    main()
