"""A server on loopback that speaks the protocol of OpenAI's image variations and edits, and has every fault in it.

It checks what is sent as the real one does, answers with the mirrored negative of the image, and keeps a record.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

FAULTS = {
    "rate limit": (429, "rate_limit_exceeded", "Rate limit reached"),
    "quota": (429, "insufficient_quota", "You exceeded your current quota"),
    "server error": (500, None, "The server had an error"),
    "overloaded": (503, None, "Overloaded"),
    "moderation": (400, "moderation_blocked", "Your request was rejected by the safety system"),
    "policy": (400, "content_policy_violation", "Your request was rejected"),
    "bad request": (400, "invalid_image", "Uploaded image is odd"),
    "gone": (404, "model_not_found", "The model `dall-e-2` does not exist"),
    "retired": (400, "invalid_value", "The model `dall-e-2` has been retired"),
    "no endpoint": (410, None, "Gone"),
    "bad key": (401, "invalid_api_key", "Incorrect API key provided: {key}"),
    "unverified": (403, None, "Your organization must be verified to use the model."),
    "not a member": (401, None, "You must be a member of an organization to use the API; {key} or sk-ab***yz is not"),
    "forbidden": (403, None, "Not for {key}"),
}


@dataclass
class Record:
    """What one server was asked for; ``plan`` are the faults of the next requests, None for a good answer."""

    url: str = ""
    plan: list[str | None] = field(default_factory=list)
    always: str | None = None  # the fault of all requests that the plan says nothing of
    refuse: str | None = None  # sha256 of an image that moderation does not like
    unknown: str | None = None  # a field that it does not take
    schema: bool = False  # whether it says so as servers of FastAPI do
    retry_after: str = "0"
    delay: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)  # complete ones only
    times: list[float] = field(default_factory=list)
    busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def per_image(self) -> Counter[str]:
        return Counter(request["sha256"] for request in self.requests)

    def wait_until_idle(self) -> None:
        """Until nothing has been at work for a moment: a client that was killed may have left a request behind."""
        quiet = 0
        while quiet < 5:
            quiet = quiet + 1 if self.busy == 0 else 0
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    record: Record

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def do_POST(self) -> None:
        record = self.record
        with record.lock:
            record.busy += 1
        try:
            self._answer(record)
        except OSError:
            self.close_connection = True  # the client was killed
        finally:
            with record.lock:
                record.busy -= 1

    def _answer(self, record: Record) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        fields = self._fields(body)
        image = fields.pop("image")
        digest = hashlib.sha256(image).hexdigest()
        with record.lock:
            number = len(record.requests)
            record.requests.append({**fields, "path": self.path, "sha256": digest, "image": image})
            record.times.append(time.monotonic())
            fault = record.plan.pop(0) if record.plan else record.always
        if digest == record.refuse:
            fault = "moderation"
        time.sleep(record.delay)
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault in FAULTS:
            status, code, message = FAULTS[fault]
            error = {"message": message.format(key=key), "type": "some_error", "code": code}
            error["param"] = "model" if fault == "retired" else None
            self._send(status, json.dumps({"error": error}).encode())
        elif record.unknown in fields and record.schema:
            detail = [{"type": "extra_forbidden", "loc": ["body", record.unknown], "msg": "Extra inputs"}]
            self._send(422, json.dumps({"detail": detail}).encode())
        elif record.unknown in fields:
            error = {"message": f"Unknown parameter: '{record.unknown}'.", "type": "invalid_request_error"}
            error |= {"param": record.unknown, "code": "unknown_parameter"}
            self._send(400, json.dumps({"error": error}).encode())
        elif not key:
            self._send(401, b'{"error": {"message": "no key"}}')
        elif complaint := self._complaint(fields, image):
            self._send(400, json.dumps({"error": {"message": complaint, "code": "invalid_request"}}).encode())
        else:
            self._send_image(fields, image, number, fault)

    def _fields(self, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        fields: dict[str, Any] = {}
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            name = part.get_param("name", header="content-disposition")
            assert isinstance(content, bytes)
            assert isinstance(name, str)
            fields[name] = content if part.get_filename() else content.decode()
        return fields

    def _complaint(self, fields: dict[str, Any], image: bytes) -> str | None:
        """As the reference of the API has it."""
        if not image.startswith(b"\x89PNG\r\n\x1a\n"):
            return "not a PNG"
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            return "not a PNG"
        height, width = pixels.shape[:2]
        if self.path == "/v1/images/variations":
            if height != width or len(image) >= 4 * 2**20:
                return "must be a square PNG under 4 MB"
            if fields["size"] not in ("256x256", "512x512", "1024x1024") or fields["response_format"] != "b64_json":
                return "unknown size or format"
        elif self.path == "/v1/images/edits":
            if not fields.get("prompt") or "response_format" in fields:
                return "prompt missing, or response_format, which image models do not take"
        else:
            return f"no such endpoint: {self.path}"
        return None if 1 <= int(fields["n"]) <= 10 else "n must be between 1 and 10"

    def _send_image(self, fields: dict[str, Any], image: bytes, number: int, fault: str | None) -> None:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        side = int(fields.get("size", "1024x1024").split("x")[0])
        made = 255 - cv2.resize(pixels, (side, side))[:, ::-1]
        made[0, 0] = number % 256  # no two answers are the same
        if fault == "black":
            made[:] = 0
        if fault == "oblong":
            made = made[: side // 2]
        if fault == "half size":
            made = cv2.resize(made, (side // 2, side // 2))
        encoded = cv2.imencode(".png", made)[1].tobytes()
        if fault == "truncated":
            encoded = encoded[: len(encoded) // 2]
        answer: Any = {"created": 1, "data": [{"b64_json": base64.b64encode(encoded).decode()}]}
        if fault == "empty":
            answer["data"] = []
        if fault == "address":
            answer["data"] = [{"url": "http://127.0.0.1/image.png"}]
        content = b"<html>no JSON</html>" if fault == "garbage" else json.dumps(answer).encode()
        self._send(200, content, cut=fault == "cut short")

    def _send(self, status: int, content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", self.record.retry_after)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@contextmanager
def image_server() -> Iterator[Record]:
    """A server on a free port of loopback, and the record of what it is asked for."""
    record = Record()
    handler = type("Handler", (_Handler,), {"record": record})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    record.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
