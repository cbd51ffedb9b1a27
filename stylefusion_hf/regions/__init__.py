"""Regions of a generator without annotated data: discovered in its features, or learned from a few painted samples.

Discovery: read `clustering.py` (the arithmetic), then `discovery.py`. Painted samples: `few_shot.py`, and
`label_page.py` for the painting page. Both give regions a tree with `naming.py`, draw it with `sheet.py` and write it
to a folder with `folders.py`.
"""
