"""A hub on the loopback: enough of its protocol for `huggingface_hub`, `transformers` and `datasets` themselves."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


def files_of(folder: Path, prefix: str = "") -> Files:
    """Every file below a folder, by its path in a repository."""
    return {f"{prefix}{p.relative_to(folder).as_posix()}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class Repo:
    """A repository: commits, branches, and who may read it."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str = ""
    gated: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit and move the branch to it."""
        sha = hashlib.sha1(repr((len(self.commits), sorted((n, hashlib.sha1(b).digest()) for n, b in files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request: a status instead of the answer, or a connection cut after some bytes of the body."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int = -1


@dataclass(frozen=True)
class Seen:
    """One request and what was answered."""

    method: str
    path: str
    range: str
    status: int


@dataclass
class Hub:
    """State of the server. `faults` holds, by the end of a path (and a method before it, if given), what to do to its next requests."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    log: list[Seen] = field(default_factory=list)

    def add(self, name: str, files: Files, kind: str = "models") -> str:
        """Put files into a repository as the next commit of its main branch."""
        return self.repos.setdefault(f"{kind}/{name}", Repo()).commit(files)

    def fault(self, method: str, path: str) -> Fault | None:
        for end, waiting in self.faults.items():
            wanted, _, tail = end.rpartition(" ")
            if waiting and path.endswith(tail) and wanted in ("", method):
                return waiting.pop(0)
        return None

    def asked(self, text: str, method: str = "GET") -> list[Seen]:
        """Requests whose path contains a text."""
        return [s for s in self.log if s.method == method and text in s.path]


_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET  # noqa: N815 — the base class calls them so

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urlsplit(self.path).path
        fault = self.hub.fault(self.command, unquote(path))
        if fault and fault.status:
            self._send(fault.status, b"", dict(fault.headers))
        elif m := _API.fullmatch(path):
            self._api(*map(_plain, m.groups()), sent)
        elif m := _RESOLVE.fullmatch(path):
            self._file(*map(_plain, m.groups()), fault.cut_after if fault else -1)
        else:
            self._send(404, b"", {})

    def _found(self, kind: str, name: str, revision: str) -> tuple[str, Files] | None:
        repo = self.hub.repos.get(f"{kind}/{name}")
        if repo and repo.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            stranger = self.headers.get("Authorization") is None  # who is told no more than this
            self._send(401 if stranger else 404, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            sha = repo.branches.get(revision, revision)
            if sha in repo.commits:
                return sha, repo.commits[sha]
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _api(self, kind: str, name: str, what: str, revision: str, below: str, sent: str) -> None:
        if (found := self._found(kind, name, revision or "main")) is None:
            return
        sha, files = found
        if what in ("", "revision"):
            siblings = [{"rfilename": n} for n in files]
            info = {"_id": "1", "id": name, "sha": sha, "siblings": siblings, "private": False, "gated": False, "disabled": False}
            self._send(200, json.dumps(info | {"tags": [], "downloads": 0, "likes": 0}).encode(), {})
        elif what == "tree":
            self._tree(files, below)
        else:
            body = json.loads(sent) if sent.startswith("{") else parse_qs(sent)
            paths = [body["paths"]] if isinstance(body["paths"], str) else body["paths"]
            entries = [_entry(n, files[n]) for n in paths if n in files]
            folders = [n for n in paths if any(f.startswith(f"{n}/") for f in files)]
            self._send(
                200, json.dumps(entries + [{"type": "directory", "path": n, "oid": _sha1(n.encode())} for n in folders]).encode(), {}
            )

    def _tree(self, files: Files, below: str) -> None:
        prefix = f"{below}/" if below else ""
        here = {n: b for n, b in files.items() if n.startswith(prefix)}
        if below and not here:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        query = parse_qs(urlsplit(self.path).query)
        deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [_entry(n, b) for n, b in here.items() if deep or "/" not in n.removeprefix(prefix)]
        folders = {prefix + n.removeprefix(prefix).partition("/")[0] for n in here if "/" in n.removeprefix(prefix)}
        entries += [{"type": "directory", "path": n, "oid": _sha1(n.encode())} for n in sorted(folders)]
        self._send(200, json.dumps(entries).encode(), {})

    def _file(self, kind: str, name: str, revision: str, path: str, cut_after: int) -> None:
        if (found := self._found(kind or "models", name, revision)) is None:
            return
        sha, files = found
        if path not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        body, headers = files[path], {"ETag": f'"{_sha1(files[path])}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if m := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop, status = int(m[1]), int(m[2] or len(body) - 1), 206
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
            body = body[start : stop + 1]
        self._send(status, body, headers, cut_after)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut_after: int = -1) -> None:
        self.hub.log.append(Seen(self.command, self.path, self.headers.get("Range", ""), status))
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut_after < 0 else body[:cut_after])
        if cut_after >= 0:
            self.close_connection = True


def _plain(part: str | None) -> str:
    return unquote(part or "")


def _sha1(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def _entry(name: str, body: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(body), "oid": _sha1(body)}


@contextmanager
def running() -> Generator[Hub]:
    """A hub on a free port of the loopback, until the block ends; its clients must have gone by then."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = False  # so that closing waits for every connection
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
