"""Passes: prune."""
