"""Fully fine-tuned models beside their base model: pairs of tensors, and their differences as updates."""
