"""Training: one module per job, each started with `accelerate launch -m stylefusion_hf.training.<job>`.

Read a job's module first: models, data, loss. What all share: `loop.py` (the steps), `common.py` (flags, draws, logs),
`checkpoints.py`, `states.py`, `resuming.py`, `memory.py` (what fits). The fusion job is the largest: `fusion.py`, then
the objectives `composed.py` and `contrastive.py`; under them `criterion.py` (sums), `samples.py` and `sampling.py`
(which codes), `references.py` (how regions should look), `pool.py` and `networks.py` (plain pictures, described).
"""
