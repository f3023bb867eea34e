"""Running the root scripts: the command line as people write it, errors as people read them, sweeps to their end."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import traceback
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from boxtwin.config import VariationsConfig, cell_name, register
from boxtwin.errors import InputError

log = logging.getLogger(__name__)

FAILURE_FILE = "failure.json"
SWEEP_VARIABLE = "BOXTWIN_SWEEP"
_NUMBERS = re.compile(r"(?P<key>\+?variations)=(?P<choices>\d+(?:\s*,\s*\d+)*)")

# Set before torch is imported. Waiting OpenMP threads that spin make two busy processes on the same cores several times
# slower; passive ones cost next to nothing on an idle machine. The rest keeps programs from phoning home.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

_failed = 0


def quote_numbers(arguments: Sequence[str], options: Path) -> list[str]:
    """``variations=0,2,10`` -> ``variations='0','2','10'``, and an option for every number named.

    Hydra reads a bare number as an integer and refuses it as the choice of a config group. Numbers without a file in
    ``options`` (conf/variations) get an option of their own.
    """
    quoted = []
    for argument in arguments:
        match = _NUMBERS.fullmatch(argument)
        if match is None:
            quoted.append(argument)
            continue
        numbers = [str(int(number)) for number in match["choices"].split(",")]
        for number in numbers:
            if (options / f"{number}.yaml").exists():
                continue
            ConfigStore.instance().store(
                group="variations", name=number, node=VariationsConfig(per_image=int(number)), provider="boxtwin"
            )
        quoted.append(f"{match['key']}=" + ",".join(f"'{number}'" for number in numbers))
    return quoted


def launch(main: Callable[[], Any]) -> None:
    """Run a Hydra main function and leave with the right exit code: 0 only if everything went well."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.argv[1:] = quote_numbers(sys.argv[1:], Path(sys.argv[0]).resolve().parent / "conf" / "variations")
    register()
    # A polite kill unwinds like Ctrl-C does, so that a run does not stay RUNNING in MLflow.
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    sys.exit(1 if _failed else 0)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def guard(work: Callable[[DictConfig], object], config: DictConfig) -> None:
    """Run one job; if it fails, say why, leave a note in its output folder, and let a sweep go on.

    What the user can mend (`InputError`) is shown as its message alone, anything else with its traceback.
    """
    global _failed
    hydra = HydraConfig.get()
    is_sweep = hydra.mode == RunMode.MULTIRUN
    note = Path(hydra.runtime.output_dir) / FAILURE_FILE
    note.unlink(missing_ok=True)
    try:
        work(config)
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, InputError):
            log.error("%s", traceback.format_exc())
        if not is_sweep:
            _failed += 1
            log.error("%s", reason)
            return
        name = _name_of(config)
        # The list at the end of the sweep has the whole message, once for all cells that share it.
        log.error("%s FAILED: %s", name, reason.splitlines()[0])
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"sweep": os.environ.get(SWEEP_VARIABLE, ""), "cell": name, "reason": reason}))


def _name_of(config: DictConfig) -> str:
    try:
        return cell_name(config)
    except Exception as error:  # a missing value, say: the name must not hide the reason
        return f"(cell without a name: {error})"


class FailureList(Callback):
    """Ends a sweep with the list of every cell that failed, and why. Hydra itself names the first only.

    Works on the notes that `guard` leaves, so it does not matter which launcher ran the cells, or where.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Give the sweep a name, which its cells inherit wherever they run: notes may be of other sweeps."""
        os.environ[SWEEP_VARIABLE] = uuid.uuid4().hex

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """List the failures."""
        global _failed
        reasons: dict[str, list[str]] = defaultdict(list)
        for note in sorted(Path(config.hydra.sweep.dir).rglob(FAILURE_FILE)):
            content = json.loads(note.read_text())
            if content["sweep"] == os.environ[SWEEP_VARIABLE]:
                reasons[content["reason"]].append(content["cell"])
        _failed += sum(len(cells) for cells in reasons.values())
        if reasons:
            lines = [f"{_failed} cell(s) of this sweep failed; the same command tries them again:"]
            for reason, cells in reasons.items():
                lines += [f"  {', '.join(cells)}:", *(f"    {line}" for line in reason.splitlines())]
            log.error("\n".join(lines))
