"""Linear algebra on torch tensors: low-rank updates, eigenpairs, second moments, subspaces."""
