"""The condensed kernel: float16 and bfloat16 on tensor cores, on condensed columns."""
