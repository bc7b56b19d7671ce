"""`osrm diagnose`: how far tasks overlap, and interference of adapters with each other."""
