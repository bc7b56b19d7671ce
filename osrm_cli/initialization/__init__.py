"""`osrm init`: LoRA initializations made from activation statistics."""
