"""A forward of our own for the families that need no transformers."""
