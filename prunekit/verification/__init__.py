"""Bounds on what a network outputs for every image in an L∞ ball: intervals, and backward linear bounds (CROWN)."""

from prunekit.verification.bounded import Bounded, bounded
from prunekit.verification.margins import margin_bounds, verified_margins

__all__ = ["Bounded", "bounded", "margin_bounds", "verified_margins"]
