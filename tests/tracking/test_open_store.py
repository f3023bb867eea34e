"""MLflow stores are opened safely: by several processes, after kills, and where a server does not answer."""

from __future__ import annotations

import multiprocessing
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.server import security_utils

from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_runs import Store, store_uri


def test_the_variable_of_mlflow_is_not_ignored_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(None, tmp_path / "own"))
    Store(uri=None, folder=tmp_path / "own")
    assert "MLFLOW_TRACKING_URI" not in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9/mlflow")
    for _ in range(2):
        Store(uri=None, folder=tmp_path / "own")
    (said,) = (line for line in caplog.messages if "MLFLOW_TRACKING_URI" in line)
    assert said.startswith("MLFLOW_TRACKING_URI=http://127.0.0.1:9/mlflow is not used: runs are recorded in sqlite:///")
    assert "secret" not in said


class Away(BaseHTTPRequestHandler):
    """A server that hangs up on its first callers, and answers an empty list then."""

    calls = 0

    def do_POST(self) -> None:
        type(self).calls += 1
        if self.calls <= 3:
            self.close_connection = True
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # the waits alone: how often stays as it is
    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = Store(uri=f"http://127.0.0.1:{server.server_port}", folder=tmp_path / "mlruns")
        assert list(store.client.search_experiments()) == []
        server.shutdown()
    assert Away.calls == 5


def test_a_server_that_is_not_there_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"tracking\.uri: .*127\.0\.0\.1:9 does not answer"):
        Store(uri="http://127.0.0.1:9", folder=tmp_path / "mlruns")


def open_and_begin(folder: Path, number: int) -> None:
    store = Store(uri=None, folder=folder)
    store.begin_run(study="together", name="run", identity=f"i{number % 2}", params={}, tags={})


def test_a_server_that_refuses_its_name_is_explained(tmp_path: Path) -> None:
    """As MLflow's own server does for names that are not among its allowed hosts."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = security_utils.INVALID_HOST_MSG.encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"cannot be used: .*403.*Start it with mlflow server --allowed-hosts"):
            Store(uri=f"http://127.0.0.1:{server.server_port}", folder=tmp_path)
        server.shutdown()


def test_processes_that_open_a_missing_store_at_once_do_not_break_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=open_and_begin, args=(tmp_path / "mlruns", number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len(Store(uri=None, folder=tmp_path / "mlruns").runs("together")) == 2


def test_a_store_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    """MLflow makes its tables in some fifty steps, and does not go on from the middle of them."""
    folder = tmp_path / "mlruns"
    context = multiprocessing.get_context("spawn")
    for size in (50_000, 400_000):  # bytes: near the first step, and well on the way; all of them make 900 kB
        process = context.Process(target=open_and_begin, args=(folder, 0))
        process.start()
        until = time.monotonic() + 60
        # Without the journals beside it, which come and go.
        while sum(file.stat().st_size for file in folder.glob("*.part")) < size and time.monotonic() < until:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert not (folder / "mlflow.db").exists()
    assert Store(uri=None, folder=folder).runs("together") == []
    assert {file.name for file in folder.iterdir()} == {".lock", "mlflow.db"}


def test_a_broken_store_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"the MLflow store .*mlflow\.db cannot be used: .*move it away"):
        Store(uri=None, folder=tmp_path)
