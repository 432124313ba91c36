"""Every other family, computed by transformers."""
