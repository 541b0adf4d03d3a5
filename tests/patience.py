"""How long a test waits for what comes in seconds on a quiet machine."""

PATIENCE_S = 600.0
"""A busy machine may be ten times slower; what hangs still ends."""
