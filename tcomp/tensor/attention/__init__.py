"""softmax(q k^T scale + mask) v in one kernel: for vectors and tiles of CPUs, threads and tensor cores."""
