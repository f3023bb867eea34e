"""How the labels of a source become the labels of its variations."""
