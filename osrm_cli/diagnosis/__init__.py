"""`osrm diagnose`: how far tasks overlap and what adapters do to each other's inputs."""
