"""Statistics of a layer's inputs: pure torch, no files."""
