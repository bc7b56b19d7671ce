"""Language models: tokens of prompts and completions, losses, and generation."""
