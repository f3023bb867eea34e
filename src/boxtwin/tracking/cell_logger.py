"""Lightning's logger of a cell; apart from the store, so that reading cells does not cost the import of Lightning."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import MLFlowLogger


class CellLogger(MLFlowLogger):
    """Lightning's MLflow logger for a run that somebody else begins and ends.

    The run is finished when the cell is, not when training is; and hyperparameters are few and logged once, by us.
    """

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: parameters are logged when the run begins."""

    def finalize(self, status: str = "success") -> None:
        """Nothing: the run goes on with evaluation."""
