"""Training on several processes, each of which owns a part of the latents and their optimiser state.

Reconstructions are summed over processes, B·d numbers a step; weights and their gradients stay where they are. The selection
of codes is exact: the B·k-th largest of all processes' candidates is found from the bits of the numbers, by histograms of
4,096 bins. Beside latents the batch may be divided too: then several groups of processes hold the same latents, each sees
its own tokens, and gradients are averaged over the groups. Processes are torch.distributed's, started with torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bench.errors import UsageError

_BITS = 12  # of a number that one histogram settles
_INTEGERS = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}
_PATIENCE = timedelta(days=1)  # the first process harvests while the others wait


@dataclass(frozen=True)
class Shards:
    """This process among those that share the latents of one SAE. Alone, every function gives its argument back.

    Args:
        rank: Number of this process among those with the same tokens, which hold the parts of the dictionary.
        count: How many these are.
        data_rank: Number of this process among those with the same latents, which see the parts of the batch.
        data_count: How many these are.
        latents: Their group: the processes with the same tokens. None while alone.
        data: Likewise: the processes with the same latents.
    """

    rank: int = 0
    count: int = 1
    data_rank: int = 0
    data_count: int = 1
    latents: dist.ProcessGroup | None = None
    data: dist.ProcessGroup | None = None

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.count * self.data_count == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == self.data_rank == 0

    def rows(self, m: int) -> slice:
        """The latents of this process among all m: parts of sizes that differ by at most one."""
        small, larger = divmod(m, self.count)
        start = self.rank * small + min(self.rank, larger)
        return slice(start, start + small + (self.rank < larger))

    def mine(self, t: Tensor) -> Tensor:
        """This process' rows of [m, …]."""
        return t if self.count == 1 else t[self.rows(len(t))].clone()

    def tokens(self, x: Tensor) -> Tensor:
        """This process' tokens of a batch."""
        return x if self.data_count == 1 else x[self.data_rank :: self.data_count].contiguous()

    def summed(self, part: Tensor) -> Tensor:
        """Sum over the parts of the dictionary; the gradient reaches every part unchanged."""
        return part if self.count == 1 else _Summed.apply(part, self.latents, 1)

    def common(self, t: Tensor) -> Tensor:
        """A tensor that all processes hold, about to be used with each one's own latents; its gradients are summed."""
        return t if self.count == 1 else _Common.apply(t, self.latents)

    def averaged(self, t: Tensor) -> Tensor:
        """Mean over the parts of the batch. The gradient passes unchanged, since gradients of weights are averaged later."""
        return t if self.data_count == 1 else _Summed.apply(t, self.data, self.data_count)

    @torch.no_grad()
    def average_(self, *gradients: Tensor) -> None:
        """Replace gradients by their means over the parts of the batch."""
        if self.data_count > 1:
            for g in gradients:
                dist.all_reduce(g, group=self.data)
                g /= self.data_count

    @torch.no_grad()
    def least_(self, t: Tensor) -> Tensor:
        """Replace numbers by the smallest over the parts of the batch."""
        if self.data_count > 1:
            dist.all_reduce(t, dist.ReduceOp.MIN, group=self.data)
        return t

    @torch.no_grad()
    def total(self, number: float) -> float:
        """Sum of a number over all processes."""
        if self.alone:
            return number
        box = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(box)
        return float(box)

    @torch.no_grad()
    def smallest(self, number: float) -> float:
        """The smallest of all processes' numbers."""
        if self.alone:
            return number
        box = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(box, dist.ReduceOp.MIN)
        return float(box)

    @torch.no_grad()
    def over_latents(self, number: float) -> float:
        """Sum of a number over the parts of the dictionary."""
        return number if self.count == 1 else float(self.summed(torch.tensor([number], dtype=torch.float64)))

    def agreed(self, decision: bool) -> bool:
        """The first process' decision."""
        return decision if self.alone else self.total(float(decision and self.first)) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if not self.alone:
            dist.barrier()

    def one_first(self, call: Callable[[], Any]) -> Any:
        """Let the first process do something whose result is kept on disk, then the others, who find it."""
        if self.alone:
            return call()
        found = call() if self.first else None
        self.wait()
        return found if self.first else call()

    @torch.no_grad()
    def gathered(self, part: Tensor) -> Tensor:
        """[m, …] all processes' rows in order; every process gets them."""
        if self.count == 1:
            return part
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(part)]), group=self.latents)
        longest = int(max(int(s) for s in sizes))
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.latents)
        return torch.cat([f[: int(s)] for f, s in zip(found, sizes, strict=True)])

    def assembled(self, part: Tensor) -> Tensor:
        """As `gathered`, with gradient: of what every process works out alike from all rows, each keeps its rows' own."""
        return part if self.count == 1 else _Assembled.apply(part, self)

    @torch.no_grad()
    def largest(self, values: Tensor, count: int) -> Tensor:
        """Mask of this process' values that are among the `count` largest of all processes' positive values.

        Among equal values those of earlier processes, and of a process the first, are taken.

        Args:
            values: [n] positive.
            count: How many in all, at most as many as there are.
        """
        if count < 1:
            return torch.zeros(len(values), dtype=torch.bool, device=values.device)
        kinds, left = _INTEGERS[values.dtype]
        bits, prefix, wanted = values.view(kinds).long(), 0, count
        inside = bits
        while left > 0:  # positive numbers are ordered as the integers that have their bits
            width = min(_BITS, left)
            left -= width
            histogram = torch.bincount((inside >> left) & (2**width - 1), minlength=2**width)
            if not self.alone:
                dist.all_reduce(histogram)
            above = histogram.flip(0).cumsum(0).flip(0)  # how many lie in this bin or a higher one
            at = int((above >= wanted).nonzero().max())
            wanted -= int(above[at] - histogram[at])
            prefix = (prefix << width) | at
            inside = inside[inside >> left == prefix]
        keep = bits > prefix
        equal = torch.nonzero(bits == prefix).squeeze(1)
        keep[equal[: max(0, wanted - self._before(len(equal)))]] = True
        return keep

    @torch.no_grad()
    def largest_of_each(self, table: Tensor) -> Tensor:
        """Mask of this process' numbers [n, k] that are among the k largest positive of their row over the parts of the dictionary."""
        if self.count == 1:
            return table > 0
        n, k = table.shape
        rows = self.gathered(table[None]).transpose(0, 1).reshape(n, -1)
        best = rows.sort(dim=1, descending=True, stable=True).indices[:, :k]
        mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, best, value=True)
        return mask.view(n, self.count, k)[:, self.rank] & (table > 0)

    def _before(self, number: int) -> int:
        """Sum of a number over the processes before this one."""
        if self.alone:
            return 0
        found = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
        dist.all_gather(found, torch.tensor([number]))
        return int(sum(int(f) for f in found[: dist.get_rank()]))


ALONE = Shards()


class _Summed(torch.autograd.Function):
    """A group's sum, divided by a number; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any, divisor: int) -> Tensor:
        out = part.clone()
        dist.all_reduce(out, group=group)
        return out if divisor == 1 else out / divisor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class _Common(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = grads[0].clone()
        dist.all_reduce(out, group=ctx.group)
        return out, None


class _Assembled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return shards.gathered(part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.mine(grads[0]), None


def joined(data_count: int = 1, device: str = "cpu") -> Shards:
    """The processes that torchrun started beside this one (gloo on CPUs, NCCL on GPUs); alone where it did not.

    Args:
        data_count: Parts of the batch; the processes are divided into so many groups, each of which holds all latents.
        device: `cuda` gives each process of a machine a GPU of its own.

    Raises:
        UsageError: The processes cannot be divided so, or there are fewer GPUs than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if data_count < 1 or world % data_count:
        raise UsageError(f"{world} processes cannot be divided into {data_count} groups", "give --data-parallel a divisor of their number")
    if world == 1:
        return ALONE
    if device != "cpu":
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if device != "cuda" or place >= torch.cuda.device_count():
            raise UsageError(f"process {place} has no GPU of its own", "use as many processes as GPUs, and --device cuda or cpu")
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    count, rank = world // data_count, dist.get_rank()
    data_rank, mine = divmod(rank, count)
    latents = [_group(range(g * count, (g + 1) * count)) for g in range(data_count)]
    data = [_group(range(r, world, count)) for r in range(count)]
    return Shards(mine, count, data_rank, data_count, latents[data_rank], data[mine])


def leave(shards: Shards) -> None:
    """End the group, once all have come to this point."""
    if not shards.alone:
        shards.wait()
        dist.destroy_process_group()


def _group(ranks: range) -> dist.ProcessGroup:
    return cast("dist.ProcessGroup", dist.new_group(list(ranks), timeout=_PATIENCE))
