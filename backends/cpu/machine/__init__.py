"""What the processor offers, and what this user may run on it."""
