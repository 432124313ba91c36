"""Two hundred answers that a person would call good though they repeat themselves, and real answers that went round in circles."""
