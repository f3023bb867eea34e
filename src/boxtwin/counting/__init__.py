"""Counting the objects of new images with trained detectors."""
