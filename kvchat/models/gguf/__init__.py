"""GGUF files: read, named as transformers names them, and taken over."""
