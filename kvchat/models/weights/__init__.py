"""Weights as decoding reads them: as they are, or integers."""
