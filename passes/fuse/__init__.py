"""Passes: fuse."""
