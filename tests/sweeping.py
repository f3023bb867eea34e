"""What train.py is, with a job that takes no time and ends as ``plan.json`` says, instead of a training.

``plan.json`` has, by the run's name, how its first attempt ends, its second, and so on: ``crash``, ``refuse`` (the
user's fault), ``data`` (the data set is wrong), ``kill`` or ``wait`` (it ends well, but takes time); every other
attempt writes result.json, as a run does. Attempts are noted in ``attempts/``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from boxtwin.config import launch
from boxtwin.config.identity import run_name
from boxtwin.errors import DataError, InputError


def work(config: DictConfig) -> None:
    name, attempts = run_name(config), Path("attempts")
    number = len(list(attempts.glob(f"{name}.*")))
    (attempts / f"{name}.{uuid.uuid4().hex}").write_text(str(os.getpid()))
    ends = json.loads(Path("plan.json").read_text()).get(name, [])
    match ends[number] if number < len(ends) else "well":
        case "crash":
            raise RuntimeError("the disk was full")
        case "refuse":
            raise InputError("a value is wrong\nset another")
        case "data":
            raise DataError("labels.json: boxes that are empty: 1\n    a.png")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            time.sleep(3)
            logging.getLogger(__name__).info("%s has waited", name)
    (Path(HydraConfig.get().runtime.output_dir) / "result.json").write_text("{}")


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    launch.guard(work, config)


if __name__ == "__main__":
    # Beside which conf/ is looked for.
    sys.argv[0] = str(Path(__file__).parents[1] / "train.py")
    launch.launch(main)
