"""The fusion nets of a region tree (StyleFusion, arXiv 2107.07437, section 3).

Read `style_rows.py` (a style code as rows of one matrix), `net.py` (one fusion net), `hierarchy.py` (all nets of a
tree, the public model), then `open_rows.py` (skipping rows whose result is known without computation).
"""
