"""From a PyTorch model to a Program; :func:`sparsefx.capture` is the door."""
