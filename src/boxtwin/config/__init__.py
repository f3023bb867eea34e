"""The configuration: its schema, names and hashes, and how a command line becomes runs. Free of torch."""
