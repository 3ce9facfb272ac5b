"""A machine with CUDA devices and Triton's driver that are not there: see fake_cuda.py."""
