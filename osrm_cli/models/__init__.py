"""Base models: weights on disk, tokenizers, batches, classification heads and hooks."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it; on CPUs it asks for a further package
