"""Convolutions with fewer multiplications: a product of matrices at each place of transformed tiles."""
