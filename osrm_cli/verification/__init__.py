"""`osrm verify`: compare files, inputs, base models and data with the digests that artifacts record."""
