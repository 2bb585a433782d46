"""Kernels of GPUs: threads and warps, tiles in shared memory, which block computes what, estimated rates."""
