"""A launcher for Ray clusters. Hydra's own, hydra-ray-launcher 1.2.0, requires Ray 1.12.0 of 2022 exactly."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from boxtwin.errors import InputError

HANDED_ON = ("BOXTWIN_", "MLFLOW_", "HYDRA_", "HF_", "OPENAI_")  # beginnings of names in the environment of jobs


class RayTasks(Launcher):
    """Each job is a task with a process of its own, on whichever machine of the cluster has room."""

    def __init__(self, address: str, cpus: float, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the jobs need; raises `InputError` if Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise InputError("hydra/launcher=ray needs a package that is missing: pip install 'boxtwin[ray]'")
        self.job = {"hydra_context": hydra_context, "task_function": task_function, "config": config}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Return when all jobs have ended; raises the first error of Ray's, such as of a process that was killed."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        ray.init(self.address, ignore_reinit_error=True, include_dashboard=False if self.address == "local" else None)
        variables = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        if not self.gpus:  # Ray itself hides them in some versions, and in others shows all of them to every job
            variables["CUDA_VISIBLE_DEVICES"] = ""
        # A process for each job, as with Hydra's other launchers; the sweep decides which jobs are tried again.
        task: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=1, max_retries=0)(run_there)
        shared = {**self.job, "singleton_state": Singleton.get_state()}
        jobs = [
            task.remote(str(Path.cwd()), variables, idx=number, overrides=list(overrides), **shared)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        try:
            ray.wait(jobs, num_returns=len(jobs))
        except BaseException:  # Ctrl-C: without it, jobs would hold their locks until this process has ended
            for job in jobs:
                ray.cancel(job, force=True)
            raise
        returned: list[JobReturn] = ray.get(jobs)
        return returned


def run_there(folder: str, variables: dict[str, str], **job: Any) -> JobReturn:
    """Run one job in ``folder``, on the machine that Ray has chosen."""
    from hydra_plugins.hydra_joblib_launcher._core import execute_job

    from boxtwin.config.launch import set_environment

    os.environ.update(variables)
    set_environment()
    os.chdir(folder)
    return execute_job(**job)
