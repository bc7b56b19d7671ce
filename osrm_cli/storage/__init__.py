"""Files: written whole or not at all, with provenance; safetensors; the hub."""
