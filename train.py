"""Train one run of a study, or with -m a sweep of runs:  python train.py -m split=s1,s2 variations=0,2,10"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch
from boxtwin.config.schema import PATHS_OF_RUNS
from boxtwin.tracking.study_names import find_study


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose, train, test, log."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        if config.final is not None:
            find_study(config.final, config.tracking.uri, Path(config.tracking.folder))
            from boxtwin.commands.train_final import train_final

            train_final(config)
            return
        from boxtwin.commands.train import train_run

        train_run(config)

    launch.guard(work, config)


def check(config: DictConfig) -> None:
    """Raise an error for wrong settings of a run, before any data are read."""
    if config.final is not None:  # whose runs have settings of their own
        return
    # Imported here: --help must not wait for torch, and a wrong folder is named before it is imported.
    from boxtwin.config.places import check_places

    check_places(config)
    from boxtwin.run.checks import check_composed

    check_composed(config)


if __name__ == "__main__":
    launch.launch(main, composed_paths=PATHS_OF_RUNS, check=check)
