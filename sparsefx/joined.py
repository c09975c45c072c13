"""What the names of tensors begin with that ``distill`` joins to a student's graph."""

__all__ = ["DISTILL_PREFIX", "TEACHER_PREFIX"]

TEACHER_PREFIX = "teacher."
"""Tensors of a teacher: passes leave them alone, and capture refuses a model with such names."""
DISTILL_PREFIX = "distill."
"""Tensors that the distillation itself trains, such as hidden projections; likewise."""
