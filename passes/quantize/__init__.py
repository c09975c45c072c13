"""Passes: quantize."""
