"""Questions that many runs answer: which machine, which numbers matter, how sparse each layer."""
