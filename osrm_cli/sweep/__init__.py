"""`osrm sweep`: merges over a grid, scored on one copy of the model."""
