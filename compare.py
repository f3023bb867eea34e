"""Compare the runs of a study: table, curves, HTML report.  python compare.py [study=NAME]"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Read the runs back, compare, report."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for MLflow.
        from boxtwin.commands.compare import compare_study

        compare_study(config)

    launch.guard(work, config)


if __name__ == "__main__":
    launch.launch(main, paths=("annotations", "runs", "primary", "folder"), again="starts from the beginning")
