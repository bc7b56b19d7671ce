"""Damaged inputs, kills, full disks, closed streams and neighbours: ``python -m tests.campaign --help``."""
