"""Regions found in a generator, or learned from painted samples."""
