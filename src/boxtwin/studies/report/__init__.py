"""The report of a study as text, tables and plots."""
