"""Labels out to people and back, doubtful labels, what to label next:  python review.py export=FORMAT store=STORE"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="review")
def main(config: DictConfig) -> None:
    """Do the one thing that was asked for."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.commands.review import review

        review(config)

    launch.guard(work, config)


if __name__ == "__main__":
    launch.launch(
        main, paths=("store", "folder", "read", "split.file", "suspects", "next"), again="starts from the beginning"
    )
