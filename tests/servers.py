"""Web servers of the tests, on this machine only: one that gives files and misbehaves as told, and one that
answers like the Hugging Face hub. Never a request to the world."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Given:
    """A file of the server, and how it is given.

    fail:     statuses of the first requests
    cut:      bytes after which the connection of the first requests breaks
    delay:    seconds before each block of 1,000 bytes
    redirect: where the request is sent instead
    ignore:   the server knows no Range
    """

    body: bytes = b""
    etag: str = '"one"'
    fail: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    delay: float = 0.0
    redirect: str = ""
    ignore: bool = False
    kind: str = "application/octet-stream"
    encoding: str = ""
    length: str | None = None


class Web(ThreadingHTTPServer):
    """``files`` maps paths to what is given there; ``asked`` holds the requests' paths and headers."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, Given] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.repositories: dict[str, dict[str, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away is a part of the tests


class Files(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        given = self.server.files.get(self.path)
        if given is None:
            return self.answer(404)
        if given.redirect:
            return self.answer(302, {"Location": given.redirect})
        if given.fail:
            return self.answer(given.fail.pop(0))
        start = 0
        headers = {"Content-Type": given.kind}
        if given.etag:
            headers["ETag"] = given.etag
        if given.encoding:
            headers["Content-Encoding"] = given.encoding
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not given.ignore and self.headers.get("If-Range") in (None, given.etag):
            start = int(asked[1])
            if start >= len(given.body):
                return self.answer(416, {"Content-Range": f"bytes */{len(given.body)}"})
            headers["Content-Range"] = f"bytes {start}-{len(given.body) - 1}/{len(given.body)}"
        rest = given.body[start:]
        headers["Content-Length"] = str(len(rest)) if given.length is None else given.length
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = given.cut.pop(0) if given.cut else None
        sent = rest[:cut]
        for place in range(0, len(sent), 1000):
            time.sleep(given.delay)
            self.wfile.write(sent[place : place + 1000])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Hub(Files):
    """As much of the hub as huggingface_hub needs to find and fetch a file."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            files = self.server.repositories.get(found[1])
            if files is None:
                return self.refuse(401, "RepoNotFound")
            if found[2] not in (None, "main", "v1", commit_of(found[1])):
                return self.refuse(404, "RevisionNotFound")
            siblings = [{"rfilename": name} for name in files]
            about = {"id": found[1], "sha": commit_of(found[1]), "siblings": siblings}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.server.repositories.get(found[1])
            if files is None:
                return self.refuse(401, "RepoNotFound")
            if found[1].endswith("gated"):
                return self.refuse(403, "GatedRepo")
            if found[2] not in ("main", "v1", commit_of(found[1])):
                return self.refuse(404, "RevisionNotFound")
            if found[3] not in files:
                return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit_of(found[1])})
            body = files[found[3]]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit_of(found[1])}
            return self.answer(200, headers, body)
        return self.answer(404)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})


def commit_of(repository: str) -> str:
    return hashlib.sha1(repository.encode()).hexdigest()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler] = Files) -> Iterator[Web]:
    """A server on a free port of this machine, for as long as the block runs."""
    web = Web(handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def closed_port() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
