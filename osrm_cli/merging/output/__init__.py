"""The folder that a merge writes: an adapter or a model, heads, masks and the tokenizer."""
