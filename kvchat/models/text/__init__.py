"""From messages to tokens: tokenizers, templates, reasoning."""
