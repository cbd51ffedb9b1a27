"""Fusion nets whose first or last layers are stored as two factors."""

import pytest
import torch

from stylefusion_hf.models.fusion.low_rank import factor_layers, merge_layers
from tests.small_fusion import draw_codes, small

BLENDERS = ("blender_segments", "blender_common")


@pytest.mark.parametrize("which", ["input_rank", "output_rank"])
def test_layers_of_low_rank(which):
    fusion = small(gate_product=True, gate_novelty=True, gate_bias=True, final_activation="linear", standardise=True)
    fusion.set_statistics(torch.randn(9, fusion.style_width))
    codes = draw_codes(fusion, batch=64)
    whole = fusion.fuse(codes)
    # At full rank nothing is lost, and the less the higher the rank.
    full = fusion.spec.hidden_width if which == "input_rank" else fusion.spec.padded_width
    with torch.no_grad():
        ranks = [factor_layers(fusion, codes, **{which: rank}) for rank in (1, 4, full)]
        errors = [float((nets.fuse(codes) - whole).square().mean()) for nets in ranks]
    assert errors[0] > 1.5 * errors[1] > 0 and errors[2] < 1e-9
    # It is exact at the rank that the layer has.
    for blender in (fusion.net(name).get_submodule(b) for name in fusion.tree.fused for b in BLENDERS):
        if which == "input_rank":
            blender.layers[0].weight.data[2:, : -fusion.spec.num_indicators * fusion.spec.indicator_repeats] = 0
        else:  # by what it sees
            blender.layers[-2].weight.data[2:] = 0
            blender.layers[-2].bias.data[2:] = 0
    smaller = factor_layers(fusion, codes, **{which: 2})
    torch.testing.assert_close(smaller.fuse(codes), fusion.fuse(codes))
    torch.testing.assert_close(smaller.fuse(draw_codes(fusion, seed=5)), fusion.fuse(draw_codes(fusion, seed=5)))
    assert smaller.num_parameters() < fusion.num_parameters()
    with pytest.raises(ValueError, match=f"{which}=2 already"):
        factor_layers(smaller, codes, **{which: 1})
    with pytest.raises(ValueError, match=f"{which}=99 must be at most"):
        factor_layers(fusion, codes, **{which: 99})


def test_first_and_last_layers_of_low_rank():
    fusion = small(gate_product=True, gate_novelty=True, gate_bias=True, final_activation="linear", hidden_width=12)
    codes = draw_codes(fusion, batch=64)
    both = factor_layers(fusion, codes, input_rank=12, output_rank=8)
    torch.testing.assert_close(both.fuse(codes), fusion.fuse(codes))
    after = factor_layers(factor_layers(fusion, codes, output_rank=8), codes, input_rank=12)  # in the other order
    torch.testing.assert_close(after.fuse(codes), fusion.fuse(codes))
    assert factor_layers(fusion, codes) is fusion


@pytest.mark.parametrize("ranks", [{"input_rank": 3}, {"output_rank": 2}, {"input_rank": 4, "output_rank": 5}])
def test_factors_multiplied_out(ranks):
    fusion = small(gate_product=True, gate_bias=True, context_width=3, lr_multiplier=0.5, **ranks)
    codes = draw_codes(fusion, batch=9)
    whole = merge_layers(fusion)
    assert (whole.spec.input_rank, whole.spec.output_rank, whole.training) == (None, None, False)
    assert whole.num_parameters() > fusion.num_parameters()
    torch.testing.assert_close(whole.fuse(codes), fusion.fuse(codes))
    again = factor_layers(whole, codes, **ranks)
    torch.testing.assert_close(again.fuse(codes), fusion.fuse(codes))
    assert merge_layers(whole) is whole
