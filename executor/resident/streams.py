"""Two streams of one device: the target's goes first, and the draft's may be confined to some of the multiprocessors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Streams(NamedTuple):
    """Of the draft and the target; None on a CPU, where work is done at once. held: what has to live as long as they do."""

    draft: torch.cuda.Stream | None
    target: torch.cuda.Stream | None
    held: Any = None


def two_streams(device: torch.device, draft_sms: int = 0) -> Streams:
    """draft_sms: multiprocessors that the draft may use, by a green context, so that its kernels leave the others to the
    target; 0 is all of them. The target's stream may always use all, and is of higher priority.
    """
    if device.type != "cuda":
        if draft_sms:
            raise ValueError(
                f"draft_sms confines the draft to multiprocessors of a GPU, but the device is {device}: leave it out."
            )
        return Streams(None, None)
    target = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch has no types here
    if not draft_sms:
        return Streams(torch.cuda.Stream(device, priority=0), target)  # type: ignore[no-untyped-call]
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    if not 0 < draft_sms <= num_sms:
        raise ValueError(
            f"{device} has {num_sms} multiprocessors, so the draft can have 1 to {num_sms}, not {draft_sms}."
        )
    try:
        context: Any = torch.cuda.GreenContext.create(num_sms=draft_sms, device_id=device.index)
        draft = context.Stream()
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            f"torch {torch.__version__} cannot confine the draft to {draft_sms} multiprocessors of {device} "
            f"({' '.join(str(error).split())}): leave draft_sms out."
        ) from error
    return Streams(draft, target, context)
