"""The bitmap kernel: float16 and bfloat16 on tensor cores, on kept weights and a bitmap."""
