"""`osrm merge`: one model from many adapters."""
