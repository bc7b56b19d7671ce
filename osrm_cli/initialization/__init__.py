"""`osrm init`: LoRA initializations from activation statistics."""
