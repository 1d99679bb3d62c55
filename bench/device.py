"""Where tensors live: a torch device by name."""

from __future__ import annotations

from bench.errors import UsageError


def pick_device(name: str) -> str:
    """A torch device; `auto` takes a GPU when there is one.

    Raises:
        UsageError: No such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}", "use auto, cpu or cuda")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise UsageError(f"no GPU for --device {name}", "use --device cpu")
    return name
