"""Recipes and checkpoints of other tools: read into those of sparsefx."""
