"""Files: those of a Program, and how any folder is written whole and read unaltered."""
