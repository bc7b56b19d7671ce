"""`osrm collect`: activation statistics of a task, layer by layer."""
