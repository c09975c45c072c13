"""Passes: pretrain."""
