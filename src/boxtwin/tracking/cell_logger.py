"""Lightning's logger of a run; apart from the store, so that reading runs does not cost the import of Lightning."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import MLFlowLogger


class CellLogger(MLFlowLogger):
    """Lightning's MLflow logger for a run that somebody else begins and ends.

    The MLflow run is finished when testing is, not when training is. Hyperparameters are few and logged once, by us.
    """

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: parameters are logged when the run begins."""

    def finalize(self, status: str = "success") -> None:
        """Nothing: the run goes on with evaluation."""
