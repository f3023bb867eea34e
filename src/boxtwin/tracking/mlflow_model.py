"""A trained detector as an MLflow model: a folder that `mlflow models serve` and any registry take."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map

import boxtwin
from boxtwin.datasets.image_io import encode_png
from boxtwin.detector.spec import DetectorSpec
from boxtwin.errors import InputError
from boxtwin.files import atomic_path

# What the served code imports, and MLflow with its server and pandas. No torch.
PACKAGES = ("mlflow", "numpy", "scipy", "opencv-python-headless", "pillow", "tifffile", "onnxruntime", "jaxtyping")


def save_mlflow_model(onnx: Path, spec: DetectorSpec, folder: Path) -> None:
    """Write an MLflow model folder with a detector's ONNX file; it replaces an older model.

    The folder holds the source of this package and no pickles: it needs no installed boxtwin, and loads in any version
    of Python that the requirements allow. These are the versions that are installed here. Raises `InputError` if
    ``folder`` exists and is no MLflow model.
    """
    if folder.exists() and not (folder / "MLmodel").is_file():
        raise InputError(f"{folder} exists and is no MLflow model; choose another folder, or remove it")
    signature = ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema(
            [
                ColSpec("long", "count"),
                ColSpec(Map("long"), "counts"),
                ColSpec(Array(Array("double")), "boxes"),
                ColSpec(Array("double"), "scores"),
                ColSpec(Array("string"), "labels"),
            ]
        ),
        params=ParamSchema([ParamSpec("threshold", "double", None)]),
    )
    # A small PNG that fits the network: a bright square on dark ground.
    shape, dtype = (32, 32) if spec.channels == 1 else (32, 32, 3), np.uint16 if spec.white > 255 else np.uint8
    pixels = np.full(shape, spec.black + (spec.white - spec.black) // 8, dtype)
    pixels[8:16, 8:16] = spec.white
    with atomic_path(folder) as temporary:
        mlflow.pyfunc.save_model(
            temporary,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"detector": str(onnx)},
            code_paths=[str(Path(boxtwin.__file__).parent)],
            signature=signature,
            input_example=pd.DataFrame({"image": [encode_png(pixels)]}),
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            metadata={"boxtwin": spec.to_text()},
        )
