"""The code of an MLflow model folder, which MLflow runs when it loads the model ("model from code", no pickle).

It needs ``detector.onnx`` and this package's source in the folder, and `mlflow_model.PACKAGES`; neither torch nor an
installed boxtwin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from boxtwin.detector.predict import OnnxDetector
from boxtwin.errors import InputError
from boxtwin.evaluation.counts import counted


class ServedDetector(PythonModel):
    """Image files in; for each its count, by class too, boxes (xyxy, pixels as training read it), scores, classes."""

    def load_context(self, context: Any) -> None:
        """Open the network."""
        self._detector = OnnxDetector(Path(context.artifacts["detector"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """One answer for each row of column ``image``, the bytes of an image file of a kind that data sets may have.

        Detections are counted and returned, best first, from their class's threshold on; ``params["threshold"]`` is one
        for all classes instead. Scores under the network's ``score_floor`` are never returned. `MlflowException`, for
        which a server answers 400: a file is no image or of the wrong bit depth, or the threshold is outside [0, 1].
        """
        threshold, spec = (params or {}).get("threshold"), self._detector.spec
        if threshold is not None and not 0 <= threshold <= 1:
            raise MlflowException.invalid_parameter_value(f"threshold lies between 0 and 1, got {threshold}")
        answers = []
        for row, encoded in enumerate(model_input["image"]):
            try:
                pixels = self._detector.read(encoded, f"image {row}")
            except InputError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from None
            detections = counted(self._detector(pixels), spec.class_thresholds if threshold is None else threshold)
            labels = [spec.classes[label] for label in detections.labels]
            answers.append(
                {
                    "count": len(detections.scores),
                    "counts": {name: labels.count(name) for name in spec.classes},
                    "boxes": detections.boxes.tolist(),
                    "scores": detections.scores.tolist(),
                    "labels": labels,
                }
            )
        return answers


set_model(ServedDetector())
