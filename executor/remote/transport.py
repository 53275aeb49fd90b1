"""Which way messages go between the two processes: what a transport needs, and how a channel is opened."""

from __future__ import annotations

from pathlib import Path

import torch

from executor.models.settings import Transport
from executor.remote.channel import Channel
from executor.remote.mailbox import MailboxChannel
from traces.processes import num_cores


def uses_nccl(devices: tuple[torch.device, torch.device]) -> bool:
    """Whether two processes on these devices can talk through NCCL, which wants two different GPUs."""
    draft, target = devices
    return draft.type == target.type == "cuda" and draft != target


def check_transport(transport: Transport, devices: tuple[torch.device, torch.device]) -> None:
    """Refuse what this build of torch cannot do."""
    if transport is Transport.MAILBOX:
        return
    backend = "nccl" if uses_nccl(devices) else "gloo"
    if not (torch.distributed.is_available() and torch.distributed.is_backend_available(backend)):
        raise ValueError(
            f"transport distributed needs {backend} between {devices[0]} and {devices[1]}, which torch "
            f"{torch.__version__} was built without: use mailbox."
        )


def open_channel(
    transport: Transport,
    meeting_place: Path,
    rank: int,
    devices: tuple[torch.device, torch.device],
    *,
    core: int | None = None,
) -> Channel:
    """One end of the channel; rank 0 is the draft's process, rank 1 the target's. May wait for the other one.

    core: of the target's process, if the two are bound to a core each; otherwise they may have one between them.
    """
    if transport is Transport.MAILBOX:
        return MailboxChannel(meeting_place, rank, may_spin=core is not None or num_cores() > 1)
    from executor.remote.distributed import DistributedChannel  # a few builds of torch lack torch.distributed

    return DistributedChannel(
        meeting_place / "store", rank, devices[rank] if uses_nccl(devices) else torch.device("cpu")
    )
