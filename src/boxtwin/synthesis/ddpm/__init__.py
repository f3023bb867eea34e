"""Diffusion models trained on the images of a split alone."""
