"""Static graphs and data sets in shards."""
