"""From a graph to a plan: which kernel computes which nodes."""
