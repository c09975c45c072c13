"""The `cpu` target: sparse machine code for encoders.

Each folder imports those above it alone; `target`, `compiled`, `artifact` and `explain` are on top.

    machine     what the processor offers, and what this user may run on it
    codegen     from Python functions to machine code: IR, vectors, frames of kernels, the driver
    kernels     one kernel a file
    plan        what a Program becomes, as data: steps, kernels by kind, weights in their formats
    runtime     runs a plan: slabs of tokens, jobs, threads and how they share the work
    measure     what is timed or checked on this machine before code is chosen
    analyses    what a graph says: layouts, masks, positions, means, whatever way it is spelled
    lowering    from a graph to a plan: which kernel computes which nodes
"""
