"""Make LoRA adapters mergeable: orthogonal starts before fine-tuning, exact merging after it."""

__version__ = "0.1.0"
