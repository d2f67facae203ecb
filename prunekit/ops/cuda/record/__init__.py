"""The record kernel: float32 on CUDA cores, on a stream of records."""
