"""Objectives for A: pure torch, no files."""
