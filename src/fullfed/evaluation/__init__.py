"""Measuring a model: loss, generated answers, text metrics."""
