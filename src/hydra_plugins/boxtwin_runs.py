"""Registers the sweeper of `boxtwin.config.sweeper`: Hydra finds plugins only in this package."""

from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.config_store import ConfigStore

from boxtwin.config.compose import register
from boxtwin.config.sweeper import RunSweeper


class BoxtwinSweeper(RunSweeper):
    """The sweeper, as a class of this module."""


@dataclass
class BoxtwinSweeperConf(BasicSweeperConf):
    """Settings of ``hydra.sweeper``, those of Hydra's own sweeper."""

    _target_: str = "hydra_plugins.boxtwin_runs.BoxtwinSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="runs", node=BoxtwinSweeperConf, provider="boxtwin")
# In the processes that launchers start, this is the only module of the project that Hydra imports before it composes.
register()
