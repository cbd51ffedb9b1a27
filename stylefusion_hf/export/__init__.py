"""Export: networks as static graphs, and rendered data sets in shards.

Graphs: read `graphs.py` (what is exported and how it is checked), then `graph_files.py` (ONNX and torch.export files)
and `description.py` (export.json).
Data sets: read `rendering.py` (recipes to pictures, on several processes), then `recipe_sources.py` (where the recipes
come from) and `shards.py` (WebDataset and Parquet files).
"""
