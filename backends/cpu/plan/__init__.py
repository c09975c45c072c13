"""What a Program becomes, as data: steps, kernels by kind, weights in their formats."""
