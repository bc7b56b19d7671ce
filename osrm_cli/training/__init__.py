"""`osrm train`: a LoRA initialization fine-tuned into an adapter."""
