"""Statistics that some merging methods compute on examples, with the model at hand."""
