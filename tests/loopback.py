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
from typing import Any


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
    """A stand-in for the Hugging Face hub with one repository of one commit."""

    repository: str = "lab/encoder"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    revisions: tuple[str, ...] = ("main", "v1")

    def answer(self, path: str) -> bytes | None:
        known = (*self.revisions, self.commit)
        if api := re.fullmatch(rf"/api/models/{self.repository}(/revision/([^/]+))?", path):
            return self._info() if (api[2] or "main") in known else None
        file = re.fullmatch(rf"/{self.repository}/resolve/([^/]+)/(.+)", path)
        return self.files.get(file[2]) if file and file[1] in known else None

    def headers(self, path: str, body: bytes) -> dict[str, str]:
        return super().headers(path, body) | {"X-Repo-Commit": self.commit}

    def missing(self, path: str) -> tuple[int, dict[str, str]]:
        if f"/{self.repository}/resolve/" in path:
            return 404, {"X-Error-Code": "EntryNotFound"}
        found = self.repository in path
        return (404, {"X-Error-Code": "RevisionNotFound"}) if found else (401, {"X-Error-Code": "RepoNotFound"})

    def _info(self) -> bytes:
        siblings = [
            {
                "rfilename": name,
                "size": len(body),
                "blobId": hashlib.sha1(body).hexdigest(),
                "lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130},
            }
            for name, body in self.files.items()
        ]
        return json.dumps({"id": self.repository, "sha": self.commit, "siblings": siblings}).encode()
