"""What runs masked convolution on NVIDIA GPUs: a folder a kernel, and what chooses among them.

A kernel's `filter` packs, `cost` cuts the work and models its time, and `op` is the op with its slow reference and what
the dispatch knows of it; `registry` lists the kernels. They are compiled from the folders of the same names in
csrc/cuda.
"""
