"""Training: one loop for every step, its state, its data, and what it minimizes."""
