"""Nests of CPUs: tiles of sums in registers, operands in panels, blocks of channels."""
