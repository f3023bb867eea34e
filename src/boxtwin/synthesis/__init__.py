"""Making variations of labelled images, and keeping them on disk."""
