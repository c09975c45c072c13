"""Kernels: each file holds one emitter, `emit(...) -> Function`, and the words of its step."""
