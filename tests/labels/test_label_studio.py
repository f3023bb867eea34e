"""The way through a real Label Studio: our tasks in, annotations changed through its API, its export read back.

The server gets an environment of its own, because its requirements exclude ours; ``LABEL_STUDIO_ENVIRONMENT`` names one
that is there already. It listens on loopback alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from commands import run
from labelled_stores import CLASSES, Boxes, boxes_in, write_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
REQUIREMENTS = Path(__file__).parents[1] / "label_studio.txt"
TOKEN = hashlib.sha1(b"of the test").hexdigest()
BOXES: dict[str, Boxes] = {
    "images/a (1), b=2_v01.png": [(CLASSES[0], (3.25, 4.5, 10.125, 6)), (CLASSES[1], (0, 0, 80, 60))],
    "images/b_v01.png": [(CLASSES[1], (50.5, 20.25, 20, 30.75)), (CLASSES[0], (5, 30, 12, 12))],
    "images/empty_v01.png": [],
    "images/skipped_v01.png": [(CLASSES[0], (1, 2, 3, 4))],
    "images/untouched_v01.png": [(CLASSES[0], (1, 2, 3, 4))],
}


class Server:
    """A running Label Studio, which serves the files below a folder."""

    def __init__(self, address: str, root: Path) -> None:
        self.address, self.root = address, root

    def __call__(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": content}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                given = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code}, {error.read()!r}") from None
        return json.loads(given) if given[:1] in (b"{", b"[") else given


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = os.environ.get("LABEL_STUDIO_ENVIRONMENT")
    if environment is None:
        environment = str(tmp_path_factory.mktemp("label_studio"))
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [f"{environment}/bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
        subprocess.run(pip, check=True)
    return Path(environment) / "bin" / "label-studio"


@pytest.fixture(scope="module")
def server(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(root / "server"),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        **dict.fromkeys(("COLLECT_ANALYTICS", "LATEST_VERSION_CHECK"), "false"),
        **dict.fromkeys(("SENTRY_DSN", "FRONTEND_SENTRY_DSN"), ""),
    }
    words = [str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    words += ["--username", "a@example.org", "--password", TOKEN, "--user-token", TOKEN]
    address, log = f"http://127.0.0.1:{port}", root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield Server(address, root)
    finally:
        process.terminate()
        process.wait(30)


def of_name(tasks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(task for task in tasks if name in task["data"].get("store_path", ""))


def box(label: str, x: float, y: float, w: float, h: float) -> dict[str, Any]:
    """A rectangle in percent, as the labelling page writes it."""
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [label]}
    kind = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "origin": "manual"}
    return {"id": "new", **kind, "original_width": 80, "original_height": 60, "image_rotation": 0, "value": value}


def test_labels_come_back_from_a_real_server(server: Server) -> None:
    tmp_path = server.root
    write_store(tmp_path / "store", BOXES, {"images/b_v01.png": {"refused": "a new object", "confirmed": False}})
    run("review.py export=label_studio store=store folder=to_label", tmp_path)
    out = tmp_path / "to_label"
    project = server("POST", "/api/projects", {"title": "cells", "label_config": (out / "config.xml").read_text()})[
        "id"
    ]
    server("POST", "/api/storages/localfiles", {"project": project, "path": str(out / "images"), "use_blob_urls": True})
    server("POST", f"/api/projects/{project}/import", json.loads((out / "tasks.json").read_text()))
    tasks = server("GET", f"/api/tasks?project={project}&fields=all&page_size=100")["tasks"]
    assert len(tasks) == len(BOXES)
    for task in tasks:  # the server finds and serves each image
        served = server("GET", quote(task["data"]["image"], safe="/?=%"))
        assert served == (tmp_path / "store" / task["data"]["store_path"]).read_bytes()

    def annotate(name: str, results: list[dict[str, Any]], **more: Any) -> None:
        task = of_name(tasks, name)
        server("POST", f"/api/tasks/{task['id']}/annotations", {"result": results, "lead_time": 90, **more})

    def predicted(name: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = of_name(tasks, name)["predictions"][0]["result"]
        return results

    annotate("a (1)", predicted("a (1)"))
    moved, _ = predicted("b_v01")
    moved["value"]["x"] += 100 * 2 / 80
    annotate("b_v01", [moved, box(CLASSES[0], 25, 10, 12.5, 20)])
    annotate("empty", [])
    annotate("skipped", predicted("skipped"), was_cancelled=True)
    exported = server("GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
    (tmp_path / "export.json").write_text(json.dumps(exported))
    printed = run("review.py read=export.json store=store", tmp_path)
    assert "3 of 5 images confirmed; boxes 2 kept, 1 moved, 1 added, 1 removed; 4.5 minutes of work" in printed
    content = json.loads((tmp_path / "labels-1.json").read_text())
    found = boxes_in(content)
    before = boxes_in(json.loads((tmp_path / "store" / "annotations.json").read_text()))
    changed = "images/b_v01.png"
    for name in BOXES.keys() - {changed}:
        assert found[name] == before[name]
    (first, first_box), (second, second_box) = found[changed]
    assert (first, second) == (CLASSES[1], CLASSES[0])
    assert first_box == pytest.approx([52.5, 20.25, 20, 30.75], abs=0.01)
    assert second_box == pytest.approx([20, 6, 10, 12], abs=0.01)
    marks = {image["file_name"]: (image["confirmed"], image.get("refused")) for image in content["images"]}
    assert marks["images/skipped_v01.png"] == (False, "skipped in Label Studio")
    assert marks["images/untouched_v01.png"] == (False, None)
    assert [name for name, (confirmed, _) in marks.items() if confirmed] == [*BOXES][:3]


def test_images_that_were_uploaded_by_hand_are_known(server: Server, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", BOXES)
    run("review.py export=label_studio store=store folder=to_label", tmp_path)
    config = (tmp_path / "to_label" / "config.xml").read_text()
    project = server("POST", "/api/projects", {"title": "cells", "label_config": config})["id"]
    name = "b_v01.png"
    head = f'--x\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + (store / "images" / name).read_bytes() + b"\r\n--x--\r\n"
    server("POST", f"/api/projects/{project}/import", body, "multipart/form-data; boundary=x")
    (task,) = server("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
    assert task["data"]["image"] != f"/data/upload/{project}/{name}"  # the server has put a prefix before it
    server("POST", f"/api/tasks/{task['id']}/annotations", {"result": [box(CLASSES[1], 25, 10, 12.5, 20)]})
    exported = server("GET", f"/api/projects/{project}/export?exportType=JSON")
    (tmp_path / "export.json").write_text(json.dumps(exported))
    run("review.py read=export.json store=store", tmp_path)
    found = boxes_in(json.loads((tmp_path / "labels-1.json").read_text()))
    ((label, found_box),) = found["images/b_v01.png"]
    assert label == CLASSES[1]
    assert found_box == pytest.approx([20, 6, 10, 12], abs=0.01)
