"""Measuring what a model does: how local its swaps are, how close its pictures come to real ones."""
