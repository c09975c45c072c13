"""What a simulation tells: cost report, page, trace, tables."""
