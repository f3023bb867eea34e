"""Make the variations of a split on disk:  python generate.py split=s1 variations=10 generator=pixel_ddpm"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch
from boxtwin.config.schema import PATHS_OF_RUNS


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Make what is missing, draw the contact sheet; or make a store's images again and compare."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.commands.generate import generate

        generate(config)

    launch.guard(work, config)


if __name__ == "__main__":
    launch.launch(main, paths=("regenerate",), composed_paths=PATHS_OF_RUNS)
