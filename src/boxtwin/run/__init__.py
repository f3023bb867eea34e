"""A composed configuration made real: data sets, splits, generators, detectors, and their checks."""
