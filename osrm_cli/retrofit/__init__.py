"""`osrm retrofit`: make existing adapters mergeable without changing their ranks."""
