"""The `onnxruntime` target."""
