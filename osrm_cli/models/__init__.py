"""Base models: weights on disk, tokenizers, batches, classification heads and hooks."""
