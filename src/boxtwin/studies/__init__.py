"""Cells of a study, gathered and compared."""
