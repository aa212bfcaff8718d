"""Measuring trained models."""

from armd.evals.likelihood import Score, evaluate, parse_orders

__all__ = ["Score", "evaluate", "parse_orders"]
