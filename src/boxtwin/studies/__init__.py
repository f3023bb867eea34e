"""Runs of a study, gathered and compared."""
