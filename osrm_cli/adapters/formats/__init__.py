"""File formats of LoRA adapters: one module each, which reads and writes it."""
