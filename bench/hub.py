"""Files of the Hugging Face hub by reference, `hf:REPO[@revision][#folder-or-file]`, and its errors as ours.

Everything goes through `huggingface_hub`, so its settings hold: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import progress
from bench.errors import BenchError, CheckpointError, ResourceError, UnavailableError, UsageError
from bench.hub_listing import CONFIGS, WEIGHTS, candidates, near, needed

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

    from bench.adapters import Given
    from bench.sae.checkpoint import Loaded

_SHOWN = 5


@dataclass(frozen=True)
class Place:
    """A place on the hub.

    Args:
        repo: `OWNER/NAME`.
        revision: Branch, tag or commit; "" is the default branch.
        path: Folder or file inside the repository; "" is its top.
    """

    repo: str
    revision: str = ""
    path: str = ""


@dataclass(frozen=True)
class Fetched:
    """What came.

    Args:
        local: The SAE's folder or file in the hub's cache.
        repo: `OWNER/NAME`.
        commit: The commit that the revision stood for.
        path: Place of the SAE inside the repository.
    """

    local: Path
    repo: str
    commit: str
    path: str


def parse(reference: str) -> Place:
    """Read `hf:REPO[@revision][#path]`.

    Raises:
        UsageError: The path leaves the repository.
    """
    text, _, path = reference.removeprefix("hf:").partition("#")
    repo, _, revision = text.partition("@")
    if path.startswith("/") or "\\" in path or "\0" in path or ".." in path.split("/"):
        raise UsageError(f"{path!r} leaves the repository", "name a folder or file inside it")
    return Place(repo, revision, "/".join(p for p in path.split("/") if p not in ("", ".")))


def open_hub(reference: str, given: Given) -> Loaded:
    """The SAE at `hf:REPO[@revision][#path]`, with the commit it was read from in its facts.

    Raises:
        UsageError: The reference is malformed.
        CheckpointError: There is none, there are several, or it is refused.
        UnavailableError: The hub refuses or cannot be reached, or has no such place.
        ResourceError: The disk is full.
    """
    return opened(fetch(parse(reference), reference), given)


def opened(found: Fetched, given: Given) -> Loaded:
    """The SAE that was fetched, named after its repository, with its commit among the facts."""
    from bench.adapters import open_checkpoint

    loaded = open_checkpoint(found.local, given)
    name, short = loaded.name, found.repo.rpartition("/")[2]
    for folder in (f"models--{found.repo.replace('/', '--')}-snapshots-{found.commit}", f"snapshots-{found.commit}", found.commit):
        name = name.replace(folder, short)  # adapters name an SAE after its folder; the cache's folders say nothing
    facts = {**loaded.facts, "hub_repo": found.repo, "hub_commit": found.commit, "hub_path": found.path}
    said = f"weights from hf:{found.repo}@{found.commit}" + (f"#{found.path}" if found.path else "")
    return replace(loaded, name=name, facts=facts, oddities=(*loaded.oddities, said))  # records keep oddities, so they cite the commit


def fetch(place: Place, reference: str) -> Fetched:
    """The files of one SAE, from the cache or the hub; never the rest of the repository.

    Args:
        place: Where it lies.
        reference: What the user wrote, for messages.

    Raises:
        As `open_hub`.
    """
    from huggingface_hub import snapshot_download

    with translated(reference):
        names, online = _listing(place)
        chosen = _choose(names, place, reference, online)
        patterns = [glob.escape(n) for n in needed(names, chosen)]
        root = Path(snapshot_download(place.repo, revision=place.revision or None, allow_patterns=patterns, local_files_only=not online))
    return Fetched(root / chosen if chosen else root, place.repo, root.name, chosen)


def model_commit(repo: str, revision: str) -> str:
    """The commit that a revision of a model stands for, or stood for when it was fetched if the hub cannot be reached.

    Branches move, so a name alone would not identify anything. Fetches the model's config, which puts the branch into
    the cache. Errors are the hub's own: see `translated`.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["config.json"])).name


def _listing(place: Place) -> tuple[list[str], bool]:
    """Names of all files, and True; or of those in the cache, and False, where the hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    revision = place.revision or None
    try:
        return sorted(s.rfilename for s in HfApi().model_info(place.repo, revision=revision).siblings or ()), True
    except HfHubHTTPError:
        raise  # an answer of the hub
    except _no_answer() as e:
        try:
            root = Path(snapshot_download(place.repo, revision=revision, local_files_only=True, allow_patterns=[]))
        except LocalEntryNotFoundError:
            raise e from None
        progress.note("the hub cannot be reached: taking what was fetched before", repo=place.repo, commit=root.name)
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()), False


def _choose(names: Sequence[str], place: Place, reference: str, online: bool) -> str:
    """The folder or file that is the SAE: the place itself, or the only SAE below it."""
    where = place.path
    if where.rpartition("/")[2] in CONFIGS:  # as with a local path, a config stands for its folder
        where = where.rpartition("/")[0]
    if where in names:
        return where
    below = [n for n in names if not where or n.startswith(f"{where}/")]
    if not below:
        said = "the repository has" if online else "the hub cannot be reached, and what was fetched before has"
        raise UnavailableError(f"{reference} cannot be fetched: {said} no file or folder {where!r}", near(where, names))
    found = candidates(below)
    if not found:
        raise CheckpointError(f"{reference} holds no weights ({', '.join(WEIGHTS)})", "name a repository or folder of an SAE")
    if len(found) > 1 and where not in found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        base = f"hf:{place.repo}" + (f"@{place.revision}" if place.revision else "")
        raise CheckpointError(f"{reference} holds {len(found)} SAEs: {shown}", f"name one of them: {base}#{found[0]}")
    return where if where in found else found[0]


def _no_answer() -> tuple[type[Exception], ...]:
    """What is raised where no answer came: offline mode, and errors of the hub's HTTP client."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # pyright: ignore[reportPrivateImportUsage] — of whichever client

    return OfflineModeIsEnabled, HTTPError


@contextmanager
def translated(reference: str, verb: str = "fetched") -> Generator[None]:
    """Turn errors of the hub, also those that another library has wrapped, into ours; let all others pass.

    Args:
        reference: What the user asked for.
        verb: What could not be done with it.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as e:  # whatever wraps the hub's error: transformers and datasets raise their own
        if (ours := _ours(_causes(e), f"{reference} cannot be {verb}")) is None:
            raise
        raise ours from e


def _causes(error: BaseException) -> list[BaseException]:
    """An error and those that it says led to it."""
    out: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in out:
        out.append(link)
        link = link.__cause__
    return out


def _ours(causes: Sequence[BaseException], start: str) -> BenchError | None:
    """Our error for the hub's, or None; an answer of the hub says more than what was made of it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if answer := next((e for e in causes if isinstance(e, HfHubHTTPError)), None):
        return UnavailableError(*_refused(answer, start))
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in causes):
        return ResourceError(f"{start}: the disk is full", "free space, or set HF_HOME to another disk")
    if any(isinstance(e, HFValidationError) for e in causes):
        return UsageError(f"{start}: it names no repository", "write hf:OWNER/NAME[@revision][#folder]")
    if any(isinstance(e, OfflineModeIsEnabled) for e in causes):
        why = "offline mode is on, and it was not fetched before"
        return UnavailableError(f"{start}: {why}", "unset HF_HUB_OFFLINE, or fetch it once with a network")
    if silent := next((e for e in causes if isinstance(e, _no_answer())), None):
        why = f"no whole answer from the hub ({type(silent).__name__})"
        return UnavailableError(f"{start}: {why}", "check the network and HF_ENDPOINT, then run again")
    if any(isinstance(e, LocalEntryNotFoundError) for e in causes):
        return UnavailableError(f"{start}: what was fetched before is not all of it", "fetch it once with a network")
    return None


def _refused(e: HfHubHTTPError, start: str) -> tuple[str, str]:
    """Cause and remedy for an answer of the hub that is no file."""
    from huggingface_hub import errors

    if isinstance(e, errors.GatedRepoError):
        return f"{start}: the repository is gated", "ask for access on its page, then set HF_TOKEN"
    if isinstance(e, errors.RepositoryNotFoundError):  # the hub answers so to a stranger of a private repository, too
        return f"{start}: there is no such repository, or it is private", "check the name, and set HF_TOKEN for a private one"
    if isinstance(e, errors.RevisionNotFoundError):
        return f"{start}: the repository has no such revision", "name a branch, a tag or a whole commit"
    if isinstance(e, errors.RemoteEntryNotFoundError):
        return f"{start}: the repository has no such file at this revision", "check the name of the folder or file"
    status = e.response.status_code
    if status in (401, 403):
        return f"{start}: the hub refuses access ({status})", "check the name, and set HF_TOKEN to a token that may read it"
    if status == 429:
        seconds = e.response.headers.get("Retry-After", "")
        wait = f"wait {seconds} s" if seconds.isdigit() else "wait some minutes"
        return f"{start}: the hub asks for fewer requests (429)", f"{wait} and run again; HF_TOKEN raises the limit"
    return f"{start}: the hub answered {status}", "run again later; HF_HUB_OFFLINE=1 takes what was fetched before"
