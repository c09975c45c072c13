"""Passes: distill."""
