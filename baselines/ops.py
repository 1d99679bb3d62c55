"""The operations that a training step consists of, on arrays without gradients.

One dense product per step, the encoder's; everything else touches active codes only. Where many codes are active a
dense product is the cheaper way, and the same functions take it: results agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from baselines import compiled
from bench.kernels import arrays, products
from bench.kernels.screening import Screen, lowest

DENSE_ABOVE = 0.1  # share of active codes from which a dense product beats the gathering of rows (perf/trainers.py --dense)
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


def encode_above(x: Tensor, w: Tensor, b: Tensor, bound: float | Tensor) -> Found:
    """Entries of x Wᵀ + b that lie above a bound; the whole matrix is never held.

    Args:
        x: [n, d] centred inputs.
        w: [m, d] encoder rows.
        b: [m].
        bound: One number, or [m] one per latent.

    Returns:
        Flat indices (token · m + latent), ascending, and the values there.
    """
    x, w, b = x.detach(), w.detach(), b.detach()
    kernel, screens = compiled.kernel(x, w, b), _screens(x, w)
    if kernel is not None and (kernel.screens or not screens):
        return kernel.encode_above(x, w, b, bound, screens)
    limit = bound - b
    limit -= limit.abs() * torch.finfo(b.dtype).eps  # the difference was rounded; values are compared with the bound itself
    if screens and (found := _collected(x, b, bound, _screened(w, b, limit))) is not None:
        return found
    if kernel is not None:
        return kernel.encode_above(x, w, b, bound)
    found = _collected(x, b, bound, _multiplied(w, b, limit))
    assert found is not None
    return found


def encode_top(x: Tensor, w: Tensor, b: Tensor, k: int) -> Found:
    """Entries of x Wᵀ + b among which the k largest positive ones of every token are, and not many others.

    Latents are looked at in groups. The k-th largest of a token's peaks, one per group, is no larger than its k-th largest
    pre-activation, and seldom much smaller. Arguments and results as in `encode_above`.
    """
    x, w, b = x.detach(), w.detach(), b.detach()
    kernel, screens = compiled.kernel(x, w, b), _screens(x, w) and _LET_THROUGH * k < _CROWDED * len(w)
    if kernel is not None and (kernel.screens or not screens):
        return kernel.encode_top(x, w, b, k, screens)
    found = _collected(x, b, 0.0, _screened_top(w, b, k) if screens else _multiplied_top(w, b, k))
    assert found is not None
    return found


def sums_of_rows(bags: Tensor, indices: Tensor, weights: Tensor, table: Tensor, n: int) -> Tensor:
    """[n, d] out[b] = Σ over the entries of bag b of weight · table[index].

    Args:
        bags: [nnz] ascending.
        indices: [nnz] rows of the table.
        weights: [nnz].
        table: [t, d].
        n: Number of bags.
    """
    if dense_is_cheaper(len(bags), n, len(table)):
        return scattered(bags, indices, weights, n, len(table)) @ table
    if (kernel := compiled.kernel(weights, table)) is not None:
        return kernel.sums_of_rows(bags, indices, weights, table, n)
    return embedding_bag(indices, table.detach(), arrays.starts(bags, n), mode="sum", per_sample_weights=weights)


def dots_of_rows(rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """[nnz] ⟨g[row], w[col]⟩ of every entry, without copies of the rows; `rows` ascending.

    Fastest where `g` is the larger table: its rows are read once each, in order.
    """
    if dense_is_cheaper(len(rows), len(g), len(w)):
        return (g @ w.T)[rows, cols]
    return _dots(rows, cols, g, w)


def by_latent(cols: Tensor, m: int) -> Tensor:
    """Order of the entries by latent, then by token."""
    if cols.device.type == "cpu" and (kernel := compiled.kernel()) is not None:
        return kernel.by_latent(cols, m)
    return arrays.order(cols, m)


def dense_is_cheaper(nnz: int, n: int, m: int) -> bool:
    """Whether so many codes are active that dense products are the faster way."""
    return nnz > DENSE_ABOVE * n * m


def scattered(rows: Tensor, cols: Tensor, values: Tensor, n: int, m: int) -> Tensor:
    """[n, m] dense codes."""
    return values.new_zeros(n, m).index_put_((rows, cols), values)


def _held(t: Tensor) -> tuple[int, int]:
    return _CACHED if t.device.type == "cpu" else _MANY


def _screens(x: Tensor, w: Tensor) -> bool:
    return len(x) > _FEW and products.ways(w, x).bfloat16


def _collected(x: Tensor, b: Tensor, bound: float | Tensor, find: Find) -> Found | None:
    """Entries above a bound in the order of tokens; None where they are too many for the way of finding them."""
    flat, values = [], []
    size = _held(x)[0]
    for i in range(0, max(1, len(x)), size):
        part = x[i : i + size]
        found = find(part)
        if found is None:
            return None
        latent, token, value = found
        above = arrays.nonzero(value > (bound.index_select(0, latent) if isinstance(bound, Tensor) else bound))
        above = above.index_select(0, arrays.order(token.index_select(0, above), len(part)))
        flat.append(((token + i) * len(b) + latent).index_select(0, above))
        values.append(value.index_select(0, above))
    return torch.cat(flat), torch.cat(values)


def _multiplied(w: Tensor, b: Tensor, limit: Tensor) -> Find:
    """Looks for products above [m] limits."""
    tiles = _tiles(w, w.dtype, lambda part, i, out: products.product(w[i : i + len(out)], part, out))

    def find(part: Tensor) -> Entries:
        at, dots = [], []
        for i, dot in tiles(part):
            above = arrays.above(dot, limit[i : i + len(dot), None])
            at.append(above + i * len(part))
            dots.append(dot.view(-1).index_select(0, above))
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
    return latent, token, _dots(latent, token, w, part) + b.index_select(0, latent)


def _dots(rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
    if (kernel := compiled.kernel(g, w)) is not None:
        return kernel.dots_of_rows(rows, cols, g, w)
    # 0 stands for bags that are summed
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(g, w, cols, arrays.starts(rows, len(g)), rows, 0)
