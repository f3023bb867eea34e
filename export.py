"""A finished cell's detector for use elsewhere:  python export.py cell=multirun/STUDY/CELL formats=[onnx,mlflow]"""

import hydra
from omegaconf import DictConfig

from boxtwin import sweep


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(config: DictConfig) -> None:
    """Read the detector, write it in every format asked for."""

    def work(config: DictConfig) -> None:
        # Imported here: --help must not wait for torch.
        from boxtwin.export import export_detector

        export_detector(config)

    sweep.guard(work, config)


if __name__ == "__main__":
    sweep.launch(main)
