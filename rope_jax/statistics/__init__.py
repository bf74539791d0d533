"""Intervals, several comparisons at once, and ranks: what the numbers of a diagnosis are worth."""
