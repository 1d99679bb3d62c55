"""The one inference form of every SAE with a linear encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError
from bench.kernels import arrays, encoding
from bench.sae import activations
from bench.sae.activations import Activation, Common, JumpReLU, TopK
from bench.sae.codes import Codes
from bench.sae.normalisation import PerToken
from bench.store import array_sha256

_BLOCK_NUMBERS = 2**24  # dense pre-activations held at a time: 64 MiB of float32
_SCREENED = 8_192  # tokens for which a screening is prepared: it pays, and what it lists stays small
_CACHED = 512  # tokens at a time on a CPU


@dataclass(frozen=True, eq=False)
class DenseSAE:
    """f = act((x − b_pre) W_enc + b_enc);  x̂ = f W_dec + b_dec.

    With `norm` the same holds of z and ẑ in place of x and x̂: each token is normalised first and brought back last.
    BatchTopK exports its threshold, a gated SAE is a per-latent JumpReLU, Matryoshka and OrtSAE differ only in
    their loss, input scaling folds into the weights: all are this one class.

    Args:
        W_enc: [d_in, d_sae].
        b_enc: [d_sae].
        W_dec: [d_sae, d_in], any row norms.
        b_dec: [d_in], added by the decoder.
        b_pre: [d_in], subtracted from the input (b_dec in most formats, zeros in some).
        act: Activation function.
        norm: What is done to each token first, and undone last; None in most formats.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor
    act: Activation
    norm: PerToken | None = None

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def sha256(self) -> str:
        """Identity of the function: the float32 weights and the activation, whatever file they came from."""
        first, *rest = activations.parts(self.act)
        kind = [torch.tensor([ord(c) for c in self.norm.kind])] if self.norm else []
        act = first.expand(self.d_sae) if isinstance(self.act, JumpReLU) else first
        tensors = (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.b_pre, act, *rest, *kind)
        return array_sha256(*(t.detach().float().cpu().numpy() for t in tensors))

    def to(self, device: str) -> DenseSAE:
        """The same SAE on another device."""
        act = activations.moved(self.act, device)
        return replace(self, act=act, **{n: getattr(self, n).to(device) for n in ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre")})

    def pre_activations(self, x: Tensor) -> Tensor:
        """[n, d_sae] values the activation function sees."""
        z = self.norm.apply(x, self.norm.frame(x)) if self.norm else x
        return torch.addmm(self.b_enc, z - self.b_pre, self.W_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Dense codes [n, d_sae]. Under `norm` they remember their tokens' frames, without which nothing can decode them."""
        f = self.act(self.pre_activations(x))
        if self.norm:
            f._frame = self.norm.frame(x)  # pyright: ignore[reportAttributeAccessIssue]
        return f

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction [n, d_in].

        Raises:
            UsageError: The SAE normalises each token, and these are not the codes that `encode` returned.
        """
        xhat = f @ self.W_dec + self.b_dec
        if not self.norm:
            return xhat
        frame = getattr(f, "_frame", None)
        if frame is None:
            raise UsageError("codes of an SAE that normalises each token do not decode alone", "give decode what encode returned")
        return xhat * frame[:, 1:] + frame[:, :1]

    @torch.no_grad()
    def encode_sparse(self, x: np.ndarray) -> Codes:
        """Codes of [n, d_in] activations, computed in blocks of tokens so that memory stays bounded."""
        if self.norm is None:
            return self._encoded(x)
        tokens = torch.from_numpy(np.array(x, np.float32))
        frame = self.norm.frame(tokens)
        codes = replace(self, norm=None)._encoded(self.norm.apply(tokens, frame).numpy())
        return replace(codes, frame=frame.numpy())

    def _encoded(self, x: np.ndarray) -> Codes:
        if not len(x):
            return Codes.from_dense(np.zeros((0, self.d_sae), dtype=np.float32))
        if not isinstance(self.act, Common):
            return self._in_blocks(x)
        inputs = torch.from_numpy(np.require(x, np.float32, ["C", "W"]))
        if self.W_enc.dtype == torch.float32 and encoding.screens(inputs, self.W_enc):
            w = self.W_enc.T.contiguous()
            return Codes.concat([self._screened(part.to(w.device), w) for part in inputs.split(_SCREENED)])
        if self.W_enc.device.type == "cpu" and not isinstance(self.act, TopK):
            return self._above(np.asarray(x, dtype=np.float32))
        return self._in_blocks(x)

    def _in_blocks(self, x: np.ndarray) -> Codes:
        block = max(16, _BLOCK_NUMBERS // self.d_sae)
        return Codes.concat([self._block(torch.from_numpy(np.array(x[i : i + block], np.float32))) for i in range(0, len(x), block)])

    def _screened(self, x: Tensor, w: Tensor) -> Codes:
        """Codes by a product in bfloat16 that finds them, and float32 that works them out; `w` holds encoder rows."""
        if isinstance(self.act, TopK):
            k = min(self.act.k, self.d_sae)
            flat, values = encoding.top(x, w, self.b_enc, k, self.b_pre)
            keep = arrays.largest_of_each(values, flat // self.d_sae, k, len(x))
            flat, values = flat[keep], values[keep]
        else:
            bound = self.act.threshold.clamp(min=0).expand(self.d_sae) if isinstance(self.act, JumpReLU) else 0.0
            flat, values = encoding.above(x, w, self.b_enc, bound, self.b_pre)
        rows, cols = arrays.split(flat, self.d_sae)
        return Codes.from_parts(rows.cpu().numpy(), cols.cpu().numpy(), values.cpu().numpy(), len(x), self.d_sae)

    def _above(self, x: np.ndarray) -> Codes:
        """Codes above a threshold on a CPU: NumPy's matrix product, and few enough tokens at a time to stay in its cache."""
        w, b, centre = (t.detach().float().numpy() for t in (self.W_enc, self.b_enc, self.b_pre))
        theta = self.act.threshold.detach().float().clamp(min=0).numpy() if isinstance(self.act, JumpReLU) else np.float32(0)
        pre, active = np.empty((_CACHED, self.d_sae), np.float32), np.empty((_CACHED, self.d_sae), bool)
        parts: list[Codes] = []
        for i in range(0, len(x), _CACHED):
            n = min(_CACHED, len(x) - i)
            np.add(np.matmul(x[i : i + n] - centre, w, out=pre[:n]), b, out=pre[:n])
            flat = np.flatnonzero(np.greater(pre[:n], theta, out=active[:n]))
            rows = flat // self.d_sae
            parts.append(Codes.from_parts(rows, flat - rows * self.d_sae, pre.reshape(-1)[flat], n, self.d_sae))
        return Codes.concat(parts)

    def _block(self, x: Tensor) -> Codes:
        pre = self.pre_activations(x.to(self.W_enc.device))
        if isinstance(self.act, TopK):
            top = pre.topk(min(self.act.k, self.d_sae), dim=-1)
            cols, order = top.indices.sort(dim=-1)
            values = top.values.gather(-1, order)
            row, at = torch.nonzero(values > 0, as_tuple=True)
            rows, latents, found = row, cols[row, at], values[row, at]
        elif not isinstance(self.act, Common):
            f = self.act(pre)
            rows, latents = torch.nonzero(f, as_tuple=True)
            found = f[rows, latents]
        else:
            active = pre > (self.act.threshold.clamp(min=0) if isinstance(self.act, JumpReLU) else 0)
            rows, latents = torch.nonzero(active, as_tuple=True)
            found = pre[rows, latents]
        return Codes.from_parts(rows.cpu().numpy(), latents.cpu().numpy(), found.cpu().numpy(), len(x), self.d_sae)

    def decode_sparse(self, codes: Codes) -> np.ndarray:
        """[n, d_in] float32 reconstructions of sparse codes."""
        xhat = codes.matrix @ self.W_dec.float().cpu().numpy() + self.b_dec.float().cpu().numpy()
        if self.norm is None:
            return xhat
        if codes.frame is None:
            raise UsageError("codes of an SAE that normalises each token do not decode alone", "give the codes that encode_sparse returned")
        return xhat * codes.frame[:, 1:] + codes.frame[:, :1]
