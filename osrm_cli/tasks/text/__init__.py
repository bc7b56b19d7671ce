"""Tasks that are answered with text: rows and metrics."""
