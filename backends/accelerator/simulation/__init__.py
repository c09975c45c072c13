"""Runs a workload on a machine: tile by tile, as a roofline, and bit by bit."""
