"""Text from the Hugging Face hub, for users who have it: `hf:NAME[@revision][#config/split/column]`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bench.errors import UnavailableError
from bench.hub import translated

if TYPE_CHECKING:
    from bench.data.text import Corpus

MAX_DOCUMENTS = 200_000


def hub_corpus(reference: str, split_version: str) -> Corpus:
    """Open a hub data set as a corpus; the first 200,000 documents are read, at the commit that the name stands for now.

    Raises:
        UnavailableError: `datasets` is not installed, or the hub refuses or cannot be reached.
    """
    from bench.data.text import Corpus

    name, _, rest = reference.partition("#")
    name, _, revision = name.partition("@")
    config, split, column = [*rest.split("/"), "", "", ""][:3] if rest else ("", "", "")
    pinned = commit(name, revision)

    def read() -> Iterator[str]:
        for row in rows(name, pinned, split or "train", config):
            if (column or "text") not in row:
                raise UnavailableError(f"hf:{name} has no column {column or 'text'!r}", f"name one of {', '.join(row)}")
            yield str(row[column or "text"])

    return Corpus(f"hf:{reference}", f"hf:{name}@{pinned}#{config}/{split}/{column}/split{split_version}", read)


def rows(name: str, revision: str | None, split: str, config: str = "") -> Iterator[Mapping[str, Any]]:
    """The first 200,000 rows of a data set on the hub, or in a local folder.

    Raises:
        UnavailableError: `datasets` is not installed, or the hub refuses or cannot be reached, or has no such split.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise UnavailableError(f"hf:{name} needs the package 'datasets'", "pip install datasets") from None
    try:
        with translated(f"hf:{name}", "read"):
            stream = datasets.load_dataset(name, config or None, split=split, revision=revision, streaming=True)
            yield from itertools.islice(stream, MAX_DOCUMENTS)
    except (OSError, ValueError, KeyError, DatasetsError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UnavailableError(f"hf:{name} cannot be read: {reason}", "check name, revision, config, split and network") from e


def commit(name: str, revision: str) -> str:
    """The commit a revision stands for; branches move, so a name alone would not identify the data.

    Raises:
        UnavailableError: The hub refuses or cannot be reached.
    """
    if len(revision) == 40:
        return revision
    from huggingface_hub import HfApi

    with translated(f"hf:{name}", "reached"):
        return str(HfApi().dataset_info(name, revision=revision or None).sha)
