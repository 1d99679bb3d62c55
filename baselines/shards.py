"""Training on several processes, each of which owns a part of the latents and their optimiser state.

Reconstructions are summed over processes, B·d numbers a step; weight gradients never travel, since every process has
those of its own latents. The selection of codes is exact: the B·k-th largest of all processes' candidates is found from
the bits of the numbers, by histograms of 4,096 bins. Processes are torch.distributed's, started with torchrun.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BITS = 12  # of a number that one histogram settles
_INTEGERS = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}


@dataclass(frozen=True)
class Shards:
    """This process among those that share the latents of one SAE. Alone, every function gives its argument back.

    Args:
        rank: Number of this process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    def rows(self, m: int) -> slice:
        """The latents of this process among all m: parts of sizes that differ by at most one."""
        small, larger = divmod(m, self.count)
        start = self.rank * small + min(self.rank, larger)
        return slice(start, start + small + (self.rank < larger))

    def mine(self, t: Tensor) -> Tensor:
        """This process' rows of [m, …]."""
        return t if self.count == 1 else t[self.rows(len(t))].clone()

    def summed(self, part: Tensor) -> Tensor:
        """Sum over processes of what each computed from its own latents; the gradient reaches every part unchanged."""
        return part if self.count == 1 else _Summed.apply(part)

    def common(self, t: Tensor) -> Tensor:
        """A tensor that all processes hold, about to be used with each one's own latents; its gradients are summed."""
        return t if self.count == 1 else _Common.apply(t)

    @torch.no_grad()
    def total(self, number: float) -> float:
        """Sum of a number over processes."""
        if self.count == 1:
            return number
        box = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(box)
        return float(box)

    @torch.no_grad()
    def gathered(self, part: Tensor) -> Tensor:
        """[m, …] all processes' rows in order; every process gets them."""
        if self.count == 1:
            return part
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(part)]))
        longest = int(max(int(s) for s in sizes))
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([f[: int(s)] for f, s in zip(found, sizes, strict=True)])

    @torch.no_grad()
    def largest(self, values: Tensor, count: int) -> Tensor:
        """Mask of this process' values that are among the `count` largest of all processes' positive values.

        Among equal values those of earlier processes, and of a process the first, are taken.

        Args:
            values: [n] positive.
            count: How many in all, at most as many as there are.
        """
        if count < 1:
            return torch.zeros(len(values), dtype=torch.bool)
        kinds, left = _INTEGERS[values.dtype]
        bits, prefix, wanted = values.view(kinds).long(), 0, count
        inside = bits
        while left > 0:  # positive numbers are ordered as the integers that have their bits
            width = min(_BITS, left)
            left -= width
            histogram = torch.bincount((inside >> left) & (2**width - 1), minlength=2**width)
            if self.count > 1:
                dist.all_reduce(histogram)
            above = histogram.flip(0).cumsum(0).flip(0)  # how many lie in this bin or a higher one
            at = int((above >= wanted).nonzero().max())
            wanted -= int(above[at] - histogram[at])
            prefix = (prefix << width) | at
            inside = inside[inside >> left == prefix]
        keep = bits > prefix
        equal = torch.nonzero(bits == prefix).squeeze(1)
        earlier = self.gathered(torch.tensor([len(equal)]))[: self.rank].sum()
        keep[equal[: max(0, wanted - int(earlier))]] = True
        return keep


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        out = part.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Common(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out = grads[0].contiguous()
        dist.all_reduce(out)
        return out


def joined() -> Shards:
    """The group that torchrun started this process in (gloo on CPUs, NCCL on GPUs); alone where it did not."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Shards()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Shards(dist.get_rank(), dist.get_world_size())
