"""What a graph says: layouts, masks, positions, means, whatever way it is spelled."""
