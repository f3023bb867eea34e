"""Count the objects of new images with a trained detector:  python count.py run=best images=FOLDER"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="count")
def main(config: DictConfig) -> None:
    """Find the detector and the images, count, write the counts."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.commands.count import count_images

        count_images(config)

    launch.guard(work, config)


if __name__ == "__main__":
    launch.launch(main, paths=("run", "images", "annotations", "folder"), again="starts from the beginning")
