"""The operations that a training step consists of, on arrays without gradients.

One dense product per step, the encoder's; everything else touches active codes only. Where many codes are active a
dense product is the cheaper way, and the same functions take it: results agree to rounding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding_bag

from baselines import compiled
from bench.kernels import arrays, encoding

DENSE_ABOVE = 0.1  # share of active codes from which a dense product beats the gathering of rows (perf/trainers.py --dense)

Found = encoding.Found


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
    kernel, screens = compiled.kernel(x, w, b), encoding.screens(x, w)
    if kernel is not None and (kernel.screens or not screens):
        return kernel.encode_above(x, w, b, bound, screens)
    return encoding.above(x, w, b, bound)


def encode_top(x: Tensor, w: Tensor, b: Tensor, k: int) -> Found:
    """Entries of x Wᵀ + b among which the k largest positive ones of every token are, and not many others.

    Latents are looked at in groups. The k-th largest of a token's peaks, one per group, is no larger than its k-th largest
    pre-activation, and seldom much smaller. Arguments and results as in `encode_above`.
    """
    x, w, b = x.detach(), w.detach(), b.detach()
    kernel, screens = compiled.kernel(x, w, b), encoding.screens_top(x, w, k)
    if kernel is not None and (kernel.screens or not screens):
        return kernel.encode_top(x, w, b, k, screens)
    return encoding.top(x, w, b, k)


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


def _dots(rows: Tensor, cols: Tensor, g: Tensor, w: Tensor) -> Tensor:
    if (kernel := compiled.kernel(g, w)) is not None:
        return kernel.dots_of_rows(rows, cols, g, w)
    return encoding.dots_of_rows(rows, cols, g, w)
