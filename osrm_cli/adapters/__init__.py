"""LoRA adapters on disk: PEFT folders read lazily, checked, and written layer by layer."""
