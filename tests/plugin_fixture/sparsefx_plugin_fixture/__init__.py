"""A third-party pass and target for sparsefx, found by entry point."""
