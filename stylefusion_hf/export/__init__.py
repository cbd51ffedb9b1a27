"""Export: networks as static graphs, and rendered data sets in shards.

Graphs: read `graphs.py` (what is exported and how it is checked), then `graph_files.py` (ONNX and torch.export files).
Data sets: read `rendering.py` (recipes to pictures, on several processes), then `shards.py` (WebDataset and Parquet
files).
"""
