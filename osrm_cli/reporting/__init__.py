"""Many results beside each other: read, compared with intervals, told in tables and pictures."""
