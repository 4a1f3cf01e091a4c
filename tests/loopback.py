"""Servers on loopback that stand in for those elsewhere, and misbehave on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

import yaml


@dataclass
class Site:
    """What a server serves, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes]
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """Path -> numbers of bytes after which the next answers break off."""
    fail_with: dict[str, list[int]] = field(default_factory=dict)
    """Path -> statuses of the next answers."""
    ranges: bool = True
    length: bool = True
    url: str = ""
    asked: Counter = field(default_factory=Counter)
    bytes_sent: int = 0

    def answer(self, path: str) -> bytes | None:
        return self.files.get(path)

    def answer_to(self, path: str, sent: bytes) -> bytes | None:
        return None

    def headers(self, path: str, body: bytes) -> dict[str, str]:
        return {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}

    def missing(self, path: str) -> tuple[int, dict[str, str]]:
        return 404, {}


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.respond(with_body=False)

        def do_GET(self) -> None:
            self.respond(with_body=True)

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            site.asked[self.command, path] += 1
            body = site.answer_to(path, sent)
            self.finish_with(404 if body is None else 200, {"Content-Type": "application/json"}, body or b"")

        def respond(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            site.asked[self.command, path] += 1
            if with_body and site.fail_with.get(path):
                return self.finish_with(site.fail_with[path].pop(0), {}, b"")
            body = site.answer(path)
            if body is None:
                status, headers = site.missing(path)
                return self.finish_with(status, headers, b"")
            headers = site.headers(path, body) | ({"Accept-Ranges": "bytes"} if site.ranges else {})
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not (site.ranges and wanted):
                return self.finish_with(200, headers, body, with_body)
            start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            self.finish_with(206, headers, body[start : end + 1], with_body)

        def finish_with(self, status: int, headers: dict[str, str], body: bytes, with_body: bool = True) -> None:
            path = self.path.partition("?")[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if site.length or status >= 400:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if not with_body:
                return
            cuts = site.cut_after.get(path)
            if cuts and status < 300 and len(body) > cuts[0]:
                body = body[: cuts.pop(0)]
                self.close_connection = True
            site.bytes_sent += len(body)
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Hub(Site):
    """A stand-in for the Hugging Face hub with one repository of one commit, and other branches if need be."""

    repository: str = "lab/encoder"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    revisions: tuple[str, ...] = ("main", "v1")
    kind: Literal["models", "datasets"] = "models"
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Branch with files of its own -> these."""

    def files_at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit."""
        for number, (branch, files) in enumerate(self.branches.items(), 1):
            if revision in (branch, self.commit_of(number)):
                return files
        return self.files if revision in (*self.revisions, self.commit) else None

    def commit_of(self, number: int) -> str:
        return f"{number:040x}" if number else self.commit

    def commit_at(self, revision: str) -> str:
        names = [*self.branches]
        numbers = [self.commit_of(number) for number in range(1, len(names) + 1)]
        return dict(zip(names, numbers, strict=True)).get(revision, revision if revision in numbers else self.commit)

    def answer(self, path: str) -> bytes | None:
        asked = self._asked(unquote(path))
        files = self.files_at(asked[1]) if asked else None
        if asked is None or files is None:
            return None
        what, revision, name = asked
        if what == "resolve":
            return files.get(name)
        if what == "tree":
            return self._tree(files, name, self.commit_at(revision))
        return self._info(files, self.commit_at(revision))

    def answer_to(self, path: str, sent: bytes) -> bytes | None:
        asked = self._asked(unquote(path))
        files = self.files_at(asked[1]) if asked else None
        if asked is None or asked[0] != "paths-info" or files is None:
            return None
        wanted = parse_qs(sent.decode()).get("paths") or json.loads(sent).get("paths", [])
        wanted = [wanted] if isinstance(wanted, str) else wanted
        folders = {name.rpartition("/")[0] for name in files}
        known = [name for name in wanted if name in files or name in folders]
        return json.dumps([_entry(name, files[name]) if name in files else _folder(name) for name in known]).encode()

    def headers(self, path: str, body: bytes) -> dict[str, str]:
        asked = self._asked(unquote(path))
        return super().headers(path, body) | {"X-Repo-Commit": self.commit_at(asked[1]) if asked else self.commit}

    def missing(self, path: str) -> tuple[int, dict[str, str]]:
        asked = self._asked(unquote(path))
        if asked and (asked[0] == "resolve" or self.files_at(asked[1]) is not None):
            return 404, {"X-Error-Code": "EntryNotFound"}
        found = self.repository in path
        return (404, {"X-Error-Code": "RevisionNotFound"}) if found else (401, {"X-Error-Code": "RepoNotFound"})

    def _asked(self, path: str) -> tuple[str, str, str] | None:
        """(what, revision, path within the repository)."""
        branches = "|".join(re.escape(branch) for branch in [*self.branches, "refs/convert/parquet"])
        revision = rf"(?P<revision>{branches}|[^/]+)"
        folder = "" if self.kind == "models" else f"{self.kind}/"
        for pattern in (
            rf"/{folder}{self.repository}/(?P<what>resolve)/{revision}/(?P<name>.+)",
            rf"/api/{self.kind}/{self.repository}/(?P<what>tree|paths-info)/{revision}(/(?P<name>.+))?",
            rf"/api/{self.kind}/{self.repository}(/(?P<what>revision)/{revision})?",
        ):
            if match := re.fullmatch(pattern, path):
                found = match.groupdict()
                return found["what"] or "revision", found["revision"] or "main", found.get("name") or ""
        return None

    def _tree(self, files: dict[str, bytes], folder: str, commit: str) -> bytes | None:
        below = {name: body for name, body in files.items() if name.startswith(f"{folder}/" if folder else "")}
        folders = {name[:i] for name in below for i, letter in enumerate(name) if letter == "/" and i > len(folder)}
        if folder and not below:
            return None
        entries = [_folder(name) for name in sorted(folders)] + [_entry(name, body) for name, body in below.items()]
        return json.dumps(entries).encode()

    def _info(self, files: dict[str, bytes], commit: str) -> bytes:
        siblings = [{"rfilename": name, **_about(body)} for name, body in files.items()]
        card = files.get("README.md", b"").decode().split("---")
        described = {"cardData": yaml.safe_load(card[1])} if len(card) > 2 else {}
        return json.dumps({"id": self.repository, "sha": commit, "siblings": siblings} | described).encode()


def _about(body: bytes) -> dict[str, Any]:
    lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return {"size": len(body), "blobId": hashlib.sha1(body).hexdigest(), "lfs": lfs}


def _entry(name: str, body: bytes) -> dict[str, Any]:
    about = _about(body)
    lfs = {"oid": about["lfs"]["sha256"], "size": len(body), "pointerSize": 130}
    return {"type": "file", "path": name, "size": len(body), "oid": about["blobId"], "lfs": lfs}


def _folder(name: str) -> dict[str, Any]:
    return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
