"""What the root scripts do: one module for each script, of the same name."""
