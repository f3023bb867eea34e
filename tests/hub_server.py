"""A server of repositories in folders that speaks the Hugging Face hub's protocol, as far as its client asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a server has, and what it was asked for."""

    repositories: dict[str, Path]
    cards: dict[str, dict[str, Any]]
    gated: set[str] = field(default_factory=set)  # their files are forbidden
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def hub_server(repositories: dict[str, Path], cards: dict[str, dict[str, Any]], *gated: str) -> Iterator[Hub]:
    """A hub of folders, by ``owner/name``, with the metadata of their model cards."""
    hub = Hub(repositories, cards, set(gated))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {self.path}")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(?:main|" + COMMIT + "))?", path):
                self.info(match[1])
            elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", path):
                self.file(match[1], match[2])
            elif match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/{COMMIT}", path):
                self.tree(hub.repositories[match[1]])
            else:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

        do_HEAD = do_GET  # noqa: N815

        def info(self, name: str) -> None:
            if name not in hub.repositories:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                return
            folder = hub.repositories[name]
            siblings = []
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    entry: dict[str, Any] = {"rfilename": file.relative_to(folder).as_posix(), "blobId": "0" * 40}
                    siblings.append(entry | ({"size": file.stat().st_size} if "blobs=" in self.path else {}))
            content = {
                "_id": "0" * 24,
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "private": False,
                "gated": "auto" if name in hub.gated else False,
                "tags": ["diffusers"],
                "cardData": hub.cards.get(name, {}),
                "siblings": siblings,
            }
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def tree(self, folder: Path) -> None:
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            entries = [
                {
                    "type": "file",
                    "oid": "0" * 40,
                    "size": file.stat().st_size,
                    "path": file.relative_to(folder).as_posix(),
                }
                for file in files
            ]
            self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")

        def file(self, name: str, path: str) -> None:
            if name in hub.gated:
                self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
                return
            file = hub.repositories.get(name, Path("/nowhere")) / path
            if not file.is_file():
                self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
                return
            body = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                first, last = int(part[1]), min(int(part[2]), len(body) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
                self.answer(206, body[first : last + 1], **headers)
            else:
                self.answer(200, body, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
