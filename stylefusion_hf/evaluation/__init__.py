"""Evaluation: how local swaps are, how much of the source they transfer, and how realistic the results look.

In reading order:

    measurement     regions, occlusion and visibility: shared with the training score and the fusion objective
    pairs           base and source samples that everything is measured on
    judges          networks used by nothing but the evaluation; `judged`: pictures as they see them
    statistics      ratios of sums with bootstrap intervals, distribution distances, monotone curves
    ruler, figures  the figures of one swap: S, T, O, leak, and those defined in other papers (`published`)
    recognition     which of 16 sources a swapped region resembles most
    calibration     the ruler applied to swaps whose exact result is known
    methods         the interface of a region swap, implemented by fusion_swaps, baselines, masked_swaps and gates;
                    registry lists the methods by name
    score, gates, limits        gates and codes learned on a differentiable score; upper bounds for all methods
    measuring       many methods at many strengths in one pass
    sections, global_control, realism, curves, limit_curves        one module per table or group of tables
    evaluate, run, report       `stylefusion evaluate`; brief: the main figures in half a minute, for training logs
"""
