"""What runs masked convolution on NVIDIA GPUs: packed filters, their ops with slow references, models, and the choice.

A kernel has four files: `*_filter` packs, `*_launch` cuts the work and models its time, `*_conv2d` is the op and its
reference, and `*_kernel` shows it to the dispatch. The kernels themselves are in csrc/cuda.
"""
