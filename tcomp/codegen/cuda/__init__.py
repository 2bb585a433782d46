"""Code for NVIDIA's GPUs: CUDA C from TIR, machine code from nvcc, kernels run by the driver."""
