"""Sparse encodings that several back ends share."""
