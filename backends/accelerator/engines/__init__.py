"""Arrays of multipliers: each file holds one engine, which says how long a product takes it."""
