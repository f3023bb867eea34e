"""The MLflow store, the folders of runs, what results were made with, and the served model."""
