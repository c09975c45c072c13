"""From Python functions to machine code: IR, vectors, frames of kernels, the driver."""
