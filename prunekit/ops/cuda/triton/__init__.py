"""Convolutions in Triton (kernels/prunekit_kernels), for GPUs with or without the compiled extension."""
