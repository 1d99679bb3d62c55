"""Files that are not what their names say, but what a failed download leaves in their place."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+|.*\.index\.json")
_HEAD = 512
_POINTER = b"version https://git-lfs"
_LOOKED_AT = (".pt", ".pth", ".npz", ".safetensors", ".bin", ".ckpt", ".pkl", ".json")
_MOST = 1000  # files of a folder


def stands_in(path: Path) -> tuple[str, str] | None:
    """What lies in the place of a file, and how to get the file; None where it may be what its name says. Never raises."""
    if not os.path.isfile(path):  # opening a pipe would wait for somebody to write
        return None
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD).lstrip()
    except OSError:
        return None
    if not head:
        return "is empty", "fetch it again"
    if head.startswith(_POINTER):
        return "is a pointer of Git LFS, not the file itself", "run git lfs pull, or fetch the file from the hub"
    if head.lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a web page (HTML), such as a login or an error", "fetch the file itself, with a token where it is needed"
    return None


def in_place(path: Path) -> tuple[str, str] | None:
    """Cause and remedy where a file, or a file of a folder, is a piece of a checkpoint or only stands in for one. Never raises."""
    try:
        files = [path] if path.is_file() else sorted(itertools.islice(path.iterdir(), _MOST))
        files = [f for f in files if f.name.endswith(_LOOKED_AT) and f.is_file()]
    except OSError:
        return None
    for file in files:
        if _SHARD.fullmatch(file.name):
            return (
                f"{file} is one of several pieces of a sharded checkpoint",
                "join them into one file, in the layout of a supported format",
            )
        if found := stands_in(file):
            return f"{file} {found[0]}", found[1]
    return None
