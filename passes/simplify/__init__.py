"""Passes: simplify."""
