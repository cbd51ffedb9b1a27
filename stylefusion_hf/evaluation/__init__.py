"""Measuring what a model does: how local its swaps are, how much of the source they show, how real they look.

In reading order:

    measurement     what a region is, when it counts, what hides it: shared with the training score and the objective
    pairs           the pictures that everything is measured on
    judges          networks that only the evaluation uses
    statistics      ratios of sums with bootstrap intervals, distances of distributions, rising curves
    ruler           the figures of one swap: S, T, O, leak, and those that other papers define (`published`)
    recognition     of 16 sources, whose region was drawn?
    calibration     the ruler held to swaps whose answer is known
    methods         the interface of whatever swaps a region; fusion_swaps, baselines, masked_swaps and gates have it,
                    registry names it
    score, gates, limits        gates and codes learned on a differentiable score, and what no method can beat
    measuring       many methods at many strengths in one pass
    sections, global_control, realism, curves, limit_curves        the tables
    evaluate, run, report       `stylefusion evaluate`; brief: its figures in half a minute, for trainings
"""
