"""What a machine is: numbers with their status, architecture files, what is built from them."""
