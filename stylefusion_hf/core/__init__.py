"""What everything else stands on: checks, files, region trees, codes, edits and recipes."""
