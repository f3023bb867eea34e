"""How real and how new variations look."""
