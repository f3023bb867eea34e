"""Which images make up one run, and how they become batches."""
