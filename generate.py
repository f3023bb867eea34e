"""Make the variations of a split on disk:  python generate.py split=s1 variations=10 generator=pixel_ddpm"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch
from boxtwin.config.schema import PATHS_OF_RUNS, GenerateConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Make what is missing, draw the contact sheet; or make a store's images again and compare."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.commands.generate import generate

        generate(config)

    launch.guard(work, config)


def check(config: DictConfig) -> None:
    """Raise an error for wrong settings, before any data are read."""
    if config.regenerate is None:  # which takes the settings of the store
        # Imported here: --help must not wait for torch.
        from boxtwin.run.checks import check_composed

        check_composed(config, GenerateConfig)


if __name__ == "__main__":
    launch.launch(main, paths=("regenerate",), composed_paths=PATHS_OF_RUNS, check=check)
