"""Passes: structure."""
