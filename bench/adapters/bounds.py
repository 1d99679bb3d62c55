"""How much is believed of what a file says of itself: its size when unpacked, and what lies in its dictionaries."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor

from bench.adapters.zips import DAMAGED, PLAIN
from bench.errors import CheckpointError

MAX_BYTES = 16 * 2**30
_MAX_RATIO = 4
_SLACK = 64 * 2**20  # small files of zeros compress well without being bombs
_MAX_DEPTH = 4  # of the dictionaries in a pt file


def bounded(name: str, declared: int, file: IO[bytes]) -> None:
    """Refuse what unpacks to much more than the file takes on disk, or to more than any checkpoint is.

    Args:
        name: For messages.
        declared: Bytes when unpacked.
        file: Open; it is left at its beginning.

    Raises:
        CheckpointError: A bomb.
    """
    size = _stored(file)
    if declared > MAX_BYTES or declared > max(_MAX_RATIO * size, _SLACK):
        raise CheckpointError(f"{name} declares {declared / 2**20:.0f} MiB in a file of {size / 2**20:.0f} MiB", DAMAGED)


def _stored(file: IO[bytes]) -> int:
    """Bytes of a file that are on disk and not holes, as far as that matters; its length where the system does not tell."""
    fd, size = file.fileno(), file.seek(0, 2)
    at = found = 0
    try:
        while at < size and found * _MAX_RATIO < size:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found += at - begin
    except AttributeError:
        return size
    except OSError as e:
        return found if e.errno == errno.ENXIO else size  # a hole up to the end
    finally:
        file.seek(0)
    return found if found * _MAX_RATIO < size else size


@dataclass(frozen=True)
class Unread:
    """Stands for a value of a pt file that no checkpoint needs, such as a list of lists. `kind` is its class."""

    kind: str


def plain(name: str, value: Any, done: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """A value in which all is words, numbers, tensors stored whole, short lists of them, or dictionaries by text.

    Args:
        name: For messages.
        value: What torch returned. A pickle can hold one object in a thousand places and inside itself.
        done: What was looked at before, by identity.
        depth: Of the dictionary that holds the value.

    Raises:
        CheckpointError: A tensor claims more than is stored, or is there twice.
    """
    done = {} if done is None else done
    if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"a tensor of {name} claims more numbers than are stored", DAMAGED)
    if isinstance(value, Tensor) or _is_scalar(value):
        return value
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = Unread(type(value).__name__)
    if isinstance(value, dict) and depth < _MAX_DEPTH and all(isinstance(k, str) for k in value):
        bare = {str(k).removeprefix("_orig_mod."): plain(name, v, done, depth + 1) for k, v in value.items()}
        if len(bare) != len(value):  # the prefix is left by torch.compile
            raise CheckpointError(f"{name} holds a tensor twice, with and without the prefix of torch.compile", PLAIN)
        done[id(value)] = bare
    elif isinstance(value, list | tuple) and all(_is_scalar(v) for v in value):
        done[id(value)] = list(value)
    return done[id(value)]


def _is_scalar(value: object) -> bool:
    """An int of more than 64 bits is none: it could not even be printed."""
    return value is None or isinstance(value, str | bool | float) or (isinstance(value, int) and abs(value) < 2**63)
