"""Evaluation: what a model finds clean and under attack, whether to believe it, and how long it takes."""
