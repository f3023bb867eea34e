"""Labelled images: reading, checking, splitting, and the embedded simulated data set."""
