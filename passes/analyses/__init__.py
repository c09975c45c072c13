"""Passes: analyses."""
