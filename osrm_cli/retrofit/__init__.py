"""`osrm retrofit`: existing adapters made mergeable at the rank they have."""
