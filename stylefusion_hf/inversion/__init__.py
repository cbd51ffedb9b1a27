"""Inversion: from pictures to latent codes.

Read `optimization.py`: the objective, the prior on codes, the optimizer and pivotal tuning. `tuned.py` saves and finds
tuned generators. The user-facing pipeline is `pipelines/invert.py`.
"""
