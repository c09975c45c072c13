"""The `reference` target."""
