"""A trained detector at work on new images."""
