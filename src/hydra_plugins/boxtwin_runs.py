"""boxtwin's sweeper at the one place where Hydra takes plugins from; what it does is in `boxtwin.config.sweeper`."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from boxtwin.config.compose import register
from boxtwin.config.sweeper import RunSweeper


class BoxtwinSweeper(RunSweeper):
    """Hydra takes a sweeper only from a module of this package."""


@dataclass
class BoxtwinSweeperConf:
    """What ``hydra.sweeper`` takes, as Hydra's own sweeper does."""

    _target_: str = "hydra_plugins.boxtwin_runs.BoxtwinSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="runs", node=BoxtwinSweeperConf, provider="boxtwin")
# Launchers that start other processes import this module in them, and nothing else of ours before a job is composed.
register()
