"""Lets ``python -m sparsefx`` be the command ``sparsefx``."""

from sparsefx.cli import main

if __name__ == "__main__":
    main()
