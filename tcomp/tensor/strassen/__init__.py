"""Matrix products with seven multiplications of half the size in place of eight, of constant weights."""
