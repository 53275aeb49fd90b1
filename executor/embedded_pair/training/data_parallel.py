"""One model trained by several processes on one machine: shared gradients, shared optimiser work.

On two CPU cores two processes of one thread each train about twice as fast as one process of two threads: at these
sizes the threads would spend their time at barriers.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any  # a worker's arguments are its own affair

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes


@dataclass(frozen=True)
class Team:
    """The processes that train together; `rank` is this one's number, and a team of one needs no messages."""

    rank: int = 0
    num_processes: int = 1

    def average_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replace every gradient by its mean over the team, in one message."""
        if self.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        _unflatten(flat / self.num_processes, gradients)

    def own_share(self, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The parameters that this process updates for everyone."""
        return list(parameters[self.rank :: self.num_processes])

    def exchange(self, parameters: Sequence[torch.Tensor]) -> None:
        """Hand every process the parameters that their owners (see own_share) have updated."""
        if self.num_processes == 1:
            return
        for owner in range(self.num_processes):
            share = list(parameters[owner :: self.num_processes])
            if not share:
                continue
            flat = torch.cat([parameter.detach().flatten() for parameter in share])
            distributed.broadcast(flat, owner)
            if owner != self.rank:
                _unflatten(flat, [parameter.detach() for parameter in share])

    def agree(self, value: float) -> float:
        """The first process's value, for everyone."""
        if self.num_processes == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return float(shared)


def run_in_team(worker: Callable[..., None], num_processes: int, *arguments: Any) -> None:
    """Call worker(team, *arguments) in so many processes of one thread each, or in this one if that is the number.

    worker is a module's function and the arguments can be pickled, as new processes need.
    """
    if num_processes == 1:
        worker(Team(), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        member_arguments = (num_processes, f"{folder}/meeting", worker, arguments)
        start_processes(_join_and_work, member_arguments, nprocs=num_processes)  # type: ignore[no-untyped-call]  # torch has no types here


def _join_and_work(
    rank: int, num_processes: int, meeting_file: str, worker: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meeting_file}", rank=rank, world_size=num_processes)
    worker(Team(rank, num_processes), *arguments)
    distributed.destroy_process_group()


def _unflatten(flat: torch.Tensor, into: Sequence[torch.Tensor]) -> None:
    start = 0
    for tensor in into:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
