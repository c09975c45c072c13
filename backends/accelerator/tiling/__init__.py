"""How products are cut into tiles, what each tile costs, and what stays on chip."""
