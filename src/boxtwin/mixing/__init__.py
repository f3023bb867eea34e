"""Which images make up one cell, and how they become batches."""
