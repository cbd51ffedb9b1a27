"""Training: one module per job, each started with `accelerate launch -m stylefusion_hf.training.<job>`.

Read a job's module first, top to bottom: models, data, losses, and what happens between steps. Then what all share:

    loop.py             fit: the steps of every training, in phases (one per optimizer)
    common.py           start and finish, schedules, averaged weights, uploads
    flags.py            the shared flags; each job has its own in <job>_flags.py, without torch; choices.py has what
                        they choose among, config_files.py reads JSON
    batches.py, datasets.py, augment.py         reproducible draws, pictures, random changes
    reports.py          the log
    checkpoints.py, resuming.py, states.py, state_files.py, inputs.py           exact resumption

    generator.py        generator_setup.py (networks), gan_losses.py, growing.py, gan_validation.py
    segmenter.py        _segmenters.py (loading one for the other jobs)
    encoder.py
    judges.py           _portrait.py, _discriminator.py (what two of the three learn)
    fusion.py           the largest job: the objectives composed.py, contrastive.py and objectives.py, summed in
                        criterion.py; samples.py and sampling.py (which codes), references.py (how regions should
                        look), pool.py and networks.py (plain pictures, described), roles.py and _regions.py
                        (regions), collapse.py (dead dials), card.py (the model card)
"""
