"""Sums that show no one's numbers, and how much of a record's owner a model may tell."""
