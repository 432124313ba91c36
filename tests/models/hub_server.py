"""A hub on 127.0.0.1 with a few tiny repositories, speaking as much of the real one's protocol as fetching needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """`repositories` maps org/name to its files, `refused` maps it to the (status, error code) it answers with."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add_folder(self, name: str, folder: Path) -> None:
        """Serve a folder's files as a repository."""
        self.repositories[name] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        self.requests.append(path)
        parts = urlsplit(path).path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.refused or name not in self.repositories:
            status, code = self.refused.get(name, (404, "RepoNotFound"))
            return status, {"X-Error-Code": code}, b"{}"
        files = self.repositories[name]
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if rest[:1] == ["tree"]:
            return 200, {}, json.dumps([_listed(file, content) for file, content in files.items()]).encode()
        if rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}, content
        siblings = [{"rfilename": file} for file in files]
        return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()


def _listed(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """A running hub; its address is `url`."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
