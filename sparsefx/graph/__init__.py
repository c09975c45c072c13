"""What stands in a graph: operators and what they do, shapes, memory, and the text of it all."""
