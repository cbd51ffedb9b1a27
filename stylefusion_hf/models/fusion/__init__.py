"""The fusion nets of a region tree."""
