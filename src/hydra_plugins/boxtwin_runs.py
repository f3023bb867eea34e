"""Registers sweeper and launcher of `boxtwin.config`: Hydra finds plugins only in this package."""

from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore

from boxtwin.config.compose import register
from boxtwin.config.ray_launcher import RayTasks
from boxtwin.config.sweeper import RunSweeper


class BoxtwinSweeper(RunSweeper):
    """The sweeper, as a class of this module."""


@dataclass
class BoxtwinSweeperConf(BasicSweeperConf):
    """Settings of ``hydra.sweeper``, those of Hydra's own sweeper."""

    _target_: str = "hydra_plugins.boxtwin_runs.BoxtwinSweeper"


class RayLauncher(RayTasks):
    """The launcher, as a class of this module."""


@dataclass
class RayLauncherConf:
    """Settings of ``hydra.launcher``."""

    _target_: str = "hydra_plugins.boxtwin_runs.RayLauncher"
    address: str = "local"  # of a cluster; auto: the one that this machine is part of; local: this machine alone
    cpus: float = 1  # of a job
    gpus: float = 0  # of a job; 0: it computes on the CPU


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="boxtwin")
ConfigStore.instance().store(group="hydra/sweeper", name="runs", node=BoxtwinSweeperConf, provider="boxtwin")
# In the processes that launchers start, this is the only module of the project that Hydra imports before it composes.
register()
