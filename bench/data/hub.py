"""Text from the Hugging Face hub, for users who have it: `hf:NAME[@revision][#config/split/column]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.errors import UnavailableError

if TYPE_CHECKING:
    from bench.data.text import Corpus

MAX_DOCUMENTS = 200_000


def hub_corpus(reference: str, split_version: str) -> Corpus:
    """Open a hub data set as a corpus; the first 200,000 documents are read.

    Raises:
        UnavailableError: `datasets` is not installed, or the hub refuses or cannot be reached.
    """
    from bench.data.text import Corpus

    name, _, rest = reference.partition("#")
    name, _, revision = name.partition("@")
    config, split, column = [*rest.split("/"), "", "", ""][:3] if rest else ("", "", "")

    def read() -> Iterator[str]:
        try:
            import datasets
        except ImportError:
            raise UnavailableError("hf: text needs the package 'datasets'", "pip install datasets") from None
        try:
            stream = datasets.load_dataset(name, config or None, split=split or "train", revision=revision or None, streaming=True)
            for i, row in enumerate(stream):
                if i >= MAX_DOCUMENTS:
                    return
                yield str(row[column or "text"])
        except (OSError, ValueError, KeyError, ConnectionError) as e:
            raise UnavailableError(f"hf:{name} cannot be read: {e}", "check name, revision, split, column and network") from e

    pinned = commit(name, revision)
    return Corpus(f"hf:{reference}", f"hf:{name}@{pinned}#{config}/{split}/{column}/split{split_version}", read)


def commit(name: str, revision: str) -> str:
    """The commit a revision stands for; branches move, so a name alone would not identify the data."""
    if len(revision) == 40:
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision or None).sha)
    except Exception as e:  # its HTTP client's own errors among them, which are no OSError
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UnavailableError(f"hf:{name} cannot be reached: {reason}", "check the name and the network, or pin @COMMIT") from e
