"""Products by the tensor cores of GPUs: `mma.sync` from sm_75 on, and those of warp groups on sm_90a."""
