"""`cache list|verify|prune|clear`: the store of activations and codes."""

from __future__ import annotations

import time
from typing import Annotated

import typer

app = typer.Typer(
    name="cache",
    help="Stored activations and codes.\n\nExamples:\n\n  python -m bench cache list\n\n  python -m bench cache prune --gb 10",
    no_args_is_help=True,
)


@app.command("list")
def list_() -> None:
    """Size and number of entries of each kind, and where they lie."""
    from bench.store import Store

    store = Store.default()
    kinds: dict[tuple[str, str], list[int]] = {}
    for e in store.entries():
        kinds.setdefault((e.kind, str(e.parts.get("hook", ""))), []).append(e.bytes)
    for (kind, hook), sizes in sorted(kinds.items()):
        print(f"{kind:<12} {hook:<28} {len(sizes):>5} entries  {sum(sizes) / 2**20:>9.1f} MiB")
    total = sum(sum(s) for s in kinds.values())
    print(f"{total / 2**30:.2f} GiB of at most {store.max_bytes / 2**30:.0f} GiB ($ORTSAE_CACHE_GB) in {store.root}")


@app.command("verify")
def verify() -> None:
    """Check every entry's checksums; exit 7 if one is damaged."""
    from bench.errors import VerificationError
    from bench.store import Store

    start, store = time.monotonic(), Store.default()
    bad = store.verify()
    if bad:
        names = ", ".join(f"{e.kind}/{e.key[:12]}" for e in bad[:5])
        raise VerificationError(
            f"{len(bad)} damaged cache entries: {names}", "they are computed again on next use, or run: python -m bench cache clear"
        )
    print(f"all {sum(1 for _ in store.entries())} entries intact ({time.monotonic() - start:.1f} s)")


@app.command("prune")
def prune(gb: Annotated[float, typer.Option(help="Keep at most this many GiB, most recently used first.", min=0)]) -> None:
    """Drop the least recently used entries."""
    from bench.store import Store

    print(f"freed {Store.default().prune(int(gb * 2**30)) / 2**30:.2f} GiB")


@app.command("clear")
def clear(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Drop every stored activation and code; packages and models stay."""
    from bench.store import Store

    if yes or typer.confirm("Drop all stored activations and codes?"):
        print(f"freed {Store.default().clear() / 2**30:.2f} GiB")
