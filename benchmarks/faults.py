"""What `reliability.py` breaks: faults, and the folder that each attempt has to itself."""
# ruff: noqa: E402

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "end_to_end")]

from commands import ENVIRONMENT as ENVIRONMENT
from commands import script

SWEEP = (
    "train.py -m experiment=tiny_control split=s2 variations=0,2 study=reliability trainer.steps=80 "
    "trainer.validations=8 trainer.accelerator=cpu trainer.precision=float32"
)
RUNS = 2
LIMIT = 900.0  # seconds of one command
# With its level in front, the first line of an error is found among all that is printed.
LEVELS = "hydra.job_logging.formatters.simple.format='%(levelname)s %(message)s'"


@dataclass(frozen=True)
class Ended:
    """How a command ended, by its exit status (None: killed, because it took too long), and what it printed."""

    status: int | None
    printed: str

    def first_line(self) -> str:
        """Of the error; of the warnings, where the command ended well; the last line where nothing is marked."""
        lines = [line.strip() for line in self.printed.replace("\r", "\n").splitlines() if line.strip()]
        level = "WARNING" if self.status == 0 else "ERROR"
        marked = [line.removeprefix(level).strip() for line in lines if line.startswith(level)]
        marked = [line for line in marked if line and not line.startswith("Traceback")]
        return (marked or ([] if self.status == 0 else lines[-1:]) or [""])[0]


class Attempt:
    """One folder in which something is broken, beside that of the undisturbed sweep."""

    def __init__(self, folder: Path, whole: Path, draw: random.Random, seconds: float) -> None:
        self.folder, self.whole, self.draw, self.seconds = folder, whole, draw, seconds
        self.command = SWEEP
        self.environment = ENVIRONMENT
        self.again: Ended | None = None  # the repeat, where the fault has made it
        folder.mkdir()

    def begin(self, more: str = "", setting: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        """Start the sweep in a process group of its own."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*script(f"{self.command} {more}"), LEVELS], cwd=self.folder, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=setting,
            )  # fmt: skip

    def run(self, more: str = "", setting: Callable[[], None] | None = None) -> Ended:
        """The sweep to its end."""
        process = self.begin(more, setting)
        try:
            status: int | None = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            kill(process)
            status = None
        return Ended(status, self.log.read_text(errors="replace"))

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def copy(self, *names: str) -> None:
        """Take files of the undisturbed sweep; all of them without names."""
        for name in names or sorted(path.name for path in self.whole.iterdir()):
            shutil.copytree(self.whole / name, self.folder / name)

    def any(self, pattern: str) -> Path:
        """One of the files or folders that match."""
        return self.draw.choice(sorted(self.folder.glob(pattern)))

    def cut(self, file: Path) -> None:
        """Leave only the beginning of a file, of a length drawn at random."""
        os.truncate(_own(file), self.draw.randrange(file.stat().st_size))


def kill(process: subprocess.Popen[bytes]) -> None:
    """A process and all that it started, as a power cut would."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _own(file: Path) -> Path:
    """The file itself, no longer linked to others."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    return file


# Each fault breaks something in an attempt's folder. What it returns, if anything, is how a command ended that ran
# while the cause was there; the same command is given afterwards in any case.


def killed(attempt: Attempt) -> None:
    attempt.copy("data")
    shutil.rmtree(attempt.folder / "data" / "synthetic")
    for _ in range(attempt.draw.randint(1, 3)):
        process = attempt.begin()
        with suppress(subprocess.TimeoutExpired):
            process.wait(attempt.draw.uniform(0.2, 1) * attempt.seconds)
        kill(process)


def checkpoint_cut(attempt: Attempt) -> None:
    attempt.copy("data")
    process = attempt.begin()
    until = time.monotonic() + LIMIT
    while not list(attempt.folder.glob("multirun/**/*.ckpt")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    kill(process)
    attempt.cut(attempt.any("multirun/**/*.ckpt"))


def cache_zeroed(attempt: Attempt) -> None:
    attempt.copy("data")
    largest = max(attempt.folder.glob("data/cache/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    with largest.open("r+b") as file:
        size = largest.stat().st_size
        start = attempt.draw.randrange(size // 2)
        file.seek(start)
        file.write(bytes(size // 4))


def image_cut(attempt: Attempt) -> None:
    attempt.copy("data")
    attempt.cut(attempt.any("data/synthetic/*/images/**/*.png"))


def manifest_cut(attempt: Attempt) -> None:
    attempt.copy("data")
    attempt.cut(attempt.any("data/synthetic/*/manifest.jsonl"))


def result_cut(attempt: Attempt) -> None:
    attempt.copy()
    attempt.cut(attempt.any("multirun/*/*/result.json"))


def detector_cut(attempt: Attempt) -> None:
    attempt.copy()
    attempt.cut(attempt.any("multirun/*/*/detector.safetensors"))


def matches_cut(attempt: Attempt) -> None:
    attempt.copy()
    attempt.cut(attempt.any("multirun/*/*/matches.npz"))


def run_folder_deleted(attempt: Attempt) -> None:
    attempt.copy()
    shutil.rmtree(attempt.any("multirun/*/*/result.json").parent)


def moved(attempt: Attempt) -> None:
    """The project lies elsewhere than when it ran; whether anything appears at its old place is looked at as well."""
    attempt.copy()
    old = attempt.folder
    attempt.folder = old.with_name(f"{old.name} moved, with a space")
    old.rename(attempt.folder)


def file_size_limited(attempt: Attempt) -> Ended:
    """As a full disk: no file may grow beyond a size drawn between a kilobyte and four megabytes."""
    attempt.copy("data")
    limit = int(1024 * 4096 ** attempt.draw.random())
    return attempt.run(setting=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))


def diverging(attempt: Attempt) -> Ended:
    """A learning rate at which the loss is no number; the same command without it afterwards."""
    attempt.copy("data")
    return attempt.run("detector.learning_rate=1e12 detector.optimizer=sgd trainer.gradient_clip=0")


def server_away(attempt: Attempt) -> Ended:
    """The tracking server is killed at a moment of the sweep and comes back when the command has ended."""
    attempt.copy("data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    attempt.command += f" tracking.uri=http://127.0.0.1:{port}"
    # By default MLflow repeats a request for four minutes, each of them.
    attempt.environment = ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
    server = _serve(attempt.folder, port)
    try:
        process = attempt.begin()
        with suppress(subprocess.TimeoutExpired):
            process.wait(attempt.draw.uniform(0.3, 0.9) * attempt.seconds)
        kill(server)
        try:
            status: int | None = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            kill(process)
            status = None
        away = Ended(status, attempt.log.read_text(errors="replace"))
        server = _serve(attempt.folder, port)
        # What is asked of every fault is asked here while the server is up.
        attempt.again = attempt.run()
        return away
    finally:
        kill(server)


def _serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    (folder / "server").mkdir(exist_ok=True)
    command = (
        f"-m mlflow server --host 127.0.0.1 --port {port} --workers 1 "
        "--backend-store-uri sqlite:///mlflow.db --artifacts-destination artifacts"
    )
    server = subprocess.Popen(
        [sys.executable, *command.split()], cwd=folder / "server",
        env=ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return server
        time.sleep(0.1)
    kill(server)
    raise TimeoutError("the MLflow server did not start within two minutes")


FAULTS: dict[str, tuple[str, Callable[[Attempt], Ended | None]]] = {
    "kill": ("the sweep killed (SIGKILL) one to three times, at any moment", killed),
    "checkpoint": ("a checkpoint cut after a kill", checkpoint_cut),
    "cache": ("a quarter of the decoded images' cache zeroed", cache_zeroed),
    "image": ("a variation's file cut", image_cut),
    "manifest": ("a store's manifest cut", manifest_cut),
    "result": ("a finished run's result.json cut", result_cut),
    "detector": ("a finished run's detector.safetensors cut", detector_cut),
    "matches": ("a finished run's matches.npz cut", matches_cut),
    "folder": ("a finished run's folder deleted", run_folder_deleted),
    "moved": ("the project's folder moved", moved),
    "disk": ("files limited in size, as by a full disk", file_size_limited),
    "diverging": ("a training whose loss is no number", diverging),
    "server": ("the tracking server gone in the middle", server_away),
}
