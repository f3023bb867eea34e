"""What the root scripts do: a module for each script, of its name, and modules for their parts."""
