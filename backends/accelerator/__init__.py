"""The `accelerator` target."""
