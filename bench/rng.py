"""Seeds are paths: every random draw names where it happens, so no draw depends on call order."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(root: int, *path: object) -> int:
    """A 63-bit seed that depends on the root seed and on every element of the path."""
    text = "/".join([str(root), *(str(p) for p in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(root: int, *path: object) -> np.random.Generator:
    """NumPy generator for one named draw."""
    return np.random.default_rng(seed_of(root, *path))


def torch_rng(root: int, *path: object) -> torch.Generator:
    """Torch (CPU) generator for one named draw."""
    return torch.Generator().manual_seed(seed_of(root, *path))
