"""Simulated radar images of ships."""
