"""Code for NVIDIA's GPUs: CUDA C from TIR, machine code from NVRTC or nvcc, kernels run by the driver."""
