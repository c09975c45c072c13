"""The command `sparsefx`."""
