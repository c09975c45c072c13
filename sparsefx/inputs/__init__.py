"""What goes into a Program: its signature, the sizes it holds for, what is wrong with a batch."""
