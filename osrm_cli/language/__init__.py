"""Models and text, through transformers, peft and datasets."""
