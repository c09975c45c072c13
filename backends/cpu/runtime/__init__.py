"""Runs a plan: slabs of tokens, jobs, threads and how they share the work."""
