"""A finished run's detector for use elsewhere:  python export.py run=multirun/STUDY/RUN formats=[onnx,mlflow]"""

import hydra
from omegaconf import DictConfig

from boxtwin.config import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(config: DictConfig) -> None:
    """Read the detector, write it in every format asked for."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.commands.export import export_detector

        export_detector(config)

    launch.guard(work, config)


if __name__ == "__main__":
    launch.launch(main, again="starts from the beginning")
