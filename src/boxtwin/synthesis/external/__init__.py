"""Images that others make: an API, or a folder of files."""
