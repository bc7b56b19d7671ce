"""The mathematics, on tensors alone: no files, no printing, no transformers."""
