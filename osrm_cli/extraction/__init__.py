"""`osrm extract`: the difference of a fully fine-tuned model from its base model as a LoRA adapter."""
