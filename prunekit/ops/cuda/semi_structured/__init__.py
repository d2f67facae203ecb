"""The semi-structured kernel: float16 and bfloat16 on sparse tensor cores."""
