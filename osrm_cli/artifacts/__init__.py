"""What lies on disk between two commands."""
