"""Tasks: examples, labels and metrics."""
