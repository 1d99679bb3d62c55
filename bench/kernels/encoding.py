"""Entries of an encoder's product that matter: those above a bound, or the largest of each token. The product is never held.

Where the processor multiplies bfloat16 so much faster that it pays, a product in bfloat16 finds what can matter and float32 works
it out (`bench.kernels.screening`): results are those of float32, to the rounding of a sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.kernels import arrays, products
from bench.kernels.screening import Screen, lowest

_CACHED = 512, 4096  # tokens and latents whose pre-activations are held at a time: they stay in a CPU's cache
_MANY = 8192, 8192  # and on a GPU, which wants large products
_FEW = 200  # tokens up to which a screening is not worth its preparation
_CROWDED = 0.05  # share of entries above a bound from which screening costs more than it saves
_LET_THROUGH = 3  # times k entries of a token, about, when the k largest are looked for
_GROUPS = 8  # times k groups of latents have a peak each, or more
_WIDEST = 32  # latents in a group
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}

Found = tuple[Tensor, Tensor]  # flat indices (token · m + latent), ascending, and values
Entries = tuple[Tensor, Tensor, Tensor]  # latent, token and pre-activation, in this order
Tiles = Iterator[tuple[int, Tensor]]  # first latent, and scores [r, n] of r latents
Find = Callable[[Tensor], Entries | None]  # of a block of tokens; None where they are too many for this way


@torch.no_grad()
def above(x: Tensor, w: Tensor, b: Tensor, bound: float | Tensor, centre: Tensor | None = None) -> Found:
    """Entries of (x − centre) Wᵀ + b that lie above a bound.

    Args:
        x: [n, d] inputs.
        w: [m, d] encoder rows.
        b: [m].
        bound: One number, or [m] one per latent.
        centre: [d] subtracted from the inputs, if given.

    Returns:
        Flat indices (token · m + latent), ascending, and the values there.
    """
    limit = bound - b
    limit -= limit.abs() * torch.finfo(b.dtype).eps  # the difference was rounded; values are compared with the bound itself
    if screens(x, w) and (found := _collected(x, b, bound, _screened(w, b, limit), centre)) is not None:
        return found
    found = _collected(x, b, bound, _multiplied(w, b, limit), centre)
    assert found is not None
    return found


@torch.no_grad()
def top(x: Tensor, w: Tensor, b: Tensor, k: int, centre: Tensor | None = None) -> Found:
    """Entries of (x − centre) Wᵀ + b among which the k largest positive ones of every token are, and not many others.

    Latents are looked at in groups. The k-th largest of a token's peaks, one per group, is no larger than its k-th largest
    pre-activation, and seldom much smaller. Arguments and results as in `above`.
    """
    find = _screened_top(w, b, k) if screens_top(x, w, k) else _multiplied_top(w, b, k)
    found = _collected(x, b, 0.0, find, centre)
    assert found is not None
    return found


def screens(x: Tensor, w: Tensor) -> bool:
    """Whether a screening pays for so many tokens [n, d] and latents [m, d] on this machine."""
    return len(x) > _FEW and products.ways(w, x).bfloat16


def screens_top(x: Tensor, w: Tensor, k: int) -> bool:
    """Likewise where the k largest are looked for."""
    return screens(x, w) and _LET_THROUGH * k < _CROWDED * len(w)


def dots_of_rows(rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """[nnz] ⟨g[row], w[col]⟩ of every entry, without copies of the rows; `rows` ascending."""
    # 0 stands for bags that are summed
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(g, w, cols, arrays.starts(rows, len(g)), rows, 0)


def _held(t: Tensor) -> tuple[int, int]:
    return _CACHED if t.device.type == "cpu" else _MANY


def _collected(x: Tensor, b: Tensor, bound: float | Tensor, find: Find, centre: Tensor | None) -> Found | None:
    """Entries above a bound in the order of tokens; None where they are too many for the way of finding them."""
    flat, values = [], []
    size = _held(x)[0]
    for i in range(0, max(1, len(x)), size):
        part = x[i : i + size] if centre is None else x[i : i + size] - centre
        found = find(part)
        if found is None:
            return None
        latent, token, value = found
        some = arrays.nonzero(value > (bound.index_select(0, latent) if isinstance(bound, Tensor) else bound))
        some = some.index_select(0, arrays.order(token.index_select(0, some), len(part)))
        flat.append(((token + i) * len(b) + latent).index_select(0, some))
        values.append(value.index_select(0, some))
    return torch.cat(flat), torch.cat(values)


def _multiplied(w: Tensor, b: Tensor, limit: Tensor) -> Find:
    """Looks for products above [m] limits."""
    tiles = _tiles(w, w.dtype, lambda part, i, out: products.product(w[i : i + len(out)], part, out))

    def find(part: Tensor) -> Entries:
        at, dots = [], []
        for i, dot in tiles(part):
            some = arrays.above(dot, limit[i : i + len(dot), None])
            at.append(some + i * len(part))
            dots.append(dot.view(-1).index_select(0, some))
        latent, token = arrays.split(torch.cat(at), len(part))
        return latent, token, torch.cat(dots) + b.index_select(0, latent)

    return find


def _screened(w: Tensor, b: Tensor, limit: Tensor) -> Find:
    """Multiplies in bfloat16, and works out in float32 what can lie above [m] limits."""
    screen = Screen.against(w, limit)
    tiles = _tiles(w, torch.bfloat16, lambda columns, i, out: screen.multiply(columns, i, out))

    def find(part: Tensor) -> Entries | None:
        at, count, none = [], 0, torch.zeros((), dtype=torch.int16, device=w.device)
        for i, scores in tiles(screen.columns(part)[0]):
            at.append(arrays.above(scores.view(torch.int16), none) + i * len(part))  # positive numbers are positive integers too
            count += len(at[-1])
            if count > _CROWDED * (i + len(scores)) * len(part):
                return None
        return _worked_out(torch.cat(at), part, w, b)

    return find


def _multiplied_top(w: Tensor, b: Tensor, k: int) -> Find:
    """Looks for what may be among the k largest positive of a token."""

    def tile(part: Tensor, i: int, out: Tensor) -> Tensor:
        return products.product(w[i : i + len(out)], part, out).add_(b[i : i + len(out), None])

    tiles = _tiles(w, w.dtype, tile)

    def find(part: Tensor) -> Entries:
        at, values = _near_top(tiles(part), k, len(w), lambda best: best)
        return *arrays.split(at, len(part)), values

    return find


def _screened_top(w: Tensor, b: Tensor, k: int) -> Find:
    """Multiplies in bfloat16, and works out in float32 what may be among the k largest positive of a token."""
    screen = Screen.scored(w, b)
    tiles = _tiles(w, torch.bfloat16, lambda columns, i, out: screen.multiply(columns, i, out))

    def find(part: Tensor) -> Entries:
        columns, lift = screen.columns(part)
        at, _ = _near_top(tiles(columns), k, len(w), lambda best: lowest(best, lift))
        return _worked_out(at, part, w, b)

    return find


def _near_top(tiles: Tiles, k: int, m: int, reached: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Flat places (latent · n + token) and scores of what may be among the k largest of a token.

    Positive floating-point numbers are compared as the integers that their bits spell, which is faster.

    Args:
        tiles: First latent and scores [r, n] of some latents.
        k: How many.
        m: Latents in all.
        reached: From the k-th largest score so far [n], or 0, to the score that is needed.
    """
    group = max(1, min(_WIDEST, m // (_GROUPS * k)))
    places, scores, best, needed = [], [], None, torch.zeros(0)
    for i, s in tiles:
        n, bits = s.shape[1], s.view(_BITS[s.dtype])
        peaks = bits[: len(s) // group * group].view(-1, group, n).amax(1).T
        best = arrays.largest(peaks if best is None else torch.cat([best, peaks], 1), k)
        needed = reached(best.amin(1).clamp(min=0).view(s.dtype)).view(bits.dtype) - 1
        at = arrays.above(bits, needed)
        places.append(at + i * n)
        scores.append(s.view(-1).index_select(0, at))
    at, found = torch.cat(places), torch.cat(scores)
    keep = arrays.nonzero(found.view(needed.dtype) > needed.index_select(0, at % len(needed)))
    return at.index_select(0, keep), found.index_select(0, keep)


def _tiles(w: Tensor, dtype: torch.dtype, multiply: Callable[[Tensor, int, Tensor], Tensor]) -> Callable[[Tensor], Tiles]:
    """Scores of a few latents at a time for the tokens given; their memory is used again for the next."""
    tokens, latents = _held(w)
    room = w.new_empty(min(latents, len(w)) * tokens, dtype=dtype)

    def tiles(columns: Tensor) -> Tiles:
        for i in range(0, len(w), latents):
            r = min(latents, len(w) - i)
            yield i, multiply(columns, i, room[: r * len(columns)].view(r, len(columns)))

    return tiles


def _worked_out(at: Tensor, part: Tensor, w: Tensor, b: Tensor) -> Entries:
    latent, token = arrays.split(at, len(part))
    return latent, token, dots_of_rows(latent, token, w, part) + b.index_select(0, latent)
