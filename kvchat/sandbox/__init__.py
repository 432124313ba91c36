"""Jinja for programs that came with a file: no way out, and bounds on time and memory. Knows no model and no prompt."""
