"""Rows that a fusion net need not compute."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from stylefusion_hf import FusionHierarchy
from stylefusion_hf.models.fusion.net import FusionNet
from tests.tiny import draw

SIZES = [8, 8, 8, 4, 4], [8, 8, 4]
SWITCHES = {"gate_bias": True, "gate_product": True, "gate_novelty": True, "standardise": True}


def hierarchy(tree="avatar", **changes) -> FusionHierarchy:
    torch.manual_seed(0)
    model = FusionHierarchy(tree, *SIZES, padded_width=8, hidden_width=16, common_conv_layers=3, **changes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=30)
    return model.requires_grad_(False)


@pytest.fixture
def computed(monkeypatch):
    """(node count, rows) of every call of a net."""
    calls = []
    forward = FusionNet.forward

    def spy(self, layout, s0, *args, **kwargs):
        calls.append(len(s0))
        return forward(self, layout, s0, *args, **kwargs)

    monkeypatch.setattr(FusionNet, "forward", spy)
    return calls


@pytest.mark.parametrize(
    "changes", [{}, SWITCHES, SWITCHES | {"context_width": 3}], ids=["authors", "switches", "context"]
)
@pytest.mark.parametrize("tree", ["avatar", "ffhq", "all*(a, b(c, d*(e, f)))"])
def test_what_is_skipped_makes_no_difference(tree, changes):
    model = hierarchy(tree, **changes)
    width, random = model.style_width, torch.Generator().manual_seed(1)
    few = draw(3, width)
    for _ in range(20):  # codes of three kinds, so that equal and repeated rows come in all combinations
        codes = {n: few[torch.randint(3, (6,), generator=random)] for n in model.tree.nodes}
        torch.testing.assert_close(model.fuse(codes), model.fuse_with_gates(codes)[0], rtol=1e-5, atol=1e-5)


def test_one_dial_computes_the_nets_above_it(computed):
    model = hierarchy()
    base = draw(1, model.style_width)
    codes = dict.fromkeys(model.tree.nodes, base)
    assert torch.equal(model.fuse(codes), base) and computed == []
    model.fuse(codes | {"hair": draw(1, model.style_width, seed=1)})
    assert computed == [1, 1]  # bg_hair_clothes, all
    computed.clear()
    model.fuse(codes | {"hair": draw(5, model.style_width, seed=1)})
    assert computed == [5, 5]


def test_repeated_rows_are_computed_once(computed):
    model = hierarchy()
    hair, eyes = draw(4, model.style_width), draw(3, model.style_width, seed=1)
    base = draw(1, model.style_width, seed=2)
    codes = dict.fromkeys(model.tree.nodes, base)
    grid = codes | {"hair": hair.repeat_interleave(3, 0), "eyes": eyes.repeat(4, 1)}
    fused = model.fuse(grid)
    assert sorted(computed) == [3, 4, 12]  # face, bg_hair_clothes, all
    for i in range(12):
        alone = model.fuse({n: c if len(c) == 1 else c[i : i + 1] for n, c in grid.items()})
        torch.testing.assert_close(fused[i : i + 1], alone)


def test_only_rows_that_differ_are_computed(computed):
    model = hierarchy()
    base = draw(4, model.style_width)
    hair = base.clone()
    hair[2] = draw(model.style_width, seed=3)
    fused = model.fuse(dict.fromkeys(model.tree.nodes, base) | {"hair": hair})
    assert computed == [1, 1]
    assert torch.equal(fused[[0, 1, 3]], base[[0, 1, 3]]) and not torch.equal(fused[2], base[2])


def test_training_goes_through_every_net(computed):
    model = hierarchy().requires_grad_(True)
    codes = {n: draw(2, model.style_width).requires_grad_() for n in model.tree.nodes}
    model.fuse(codes).sum().backward()
    assert computed == [2] * len(model.tree.fused)
    assert all(c.grad is not None for c in codes.values())  # which equal codes that are skipped would not give
    computed.clear()
    with torch.no_grad():
        assert model.fuse(codes).shape == (2, model.style_width) and computed == []


def test_codes_that_are_not_numbers_are_not_skipped():
    model = hierarchy()
    codes = dict.fromkeys(model.tree.nodes, torch.full((1, model.style_width), float("nan")))
    assert model.fuse(codes).isnan().all()


def test_half_precision_codes():
    model = hierarchy()
    few = draw(2, model.style_width).to(torch.bfloat16)
    codes = dict.fromkeys(model.tree.nodes, few[:1].expand(4, -1)) | {"hair": few.repeat(2, 1)}
    assert torch.equal(model.fuse(codes)[0], few[0])
    torch.testing.assert_close(model.fuse(codes), model.fuse_with_gates(codes)[0], rtol=0.05, atol=0.05)


def test_forward_mode_and_transforms_see_every_net():
    model = hierarchy()
    base, way = draw(1, model.style_width), draw(1, model.style_width, seed=1)
    codes = dict.fromkeys(model.tree.nodes, base)

    def tangent(fuse):  # at equal codes, where only the value says that a net can be skipped
        with forward_ad.dual_level():
            hair = forward_ad.make_dual(base.clone(), way)
            return forward_ad.unpack_dual(fuse(codes | {"hair": hair})).tangent

    expected = tangent(lambda c: model.fuse_with_gates(c)[0])
    assert expected.abs().max() > 0
    torch.testing.assert_close(tangent(model.fuse), expected)
    moved = torch.func.jvp(lambda hair: model.fuse(codes | {"hair": hair}), (base,), (way,))[1]
    torch.testing.assert_close(moved, expected)


def test_a_trace_holds_every_net():
    model = hierarchy()
    nodes, same = model.tree.nodes, draw(1, model.style_width).expand(len(model.tree.nodes), 2, -1)
    traced = torch.jit.trace(lambda x: model.fuse(dict(zip(nodes, x, strict=True))), (same,), check_trace=False)
    other = draw(len(nodes), 2, model.style_width, seed=2)
    torch.testing.assert_close(traced(other), model.fuse(dict(zip(nodes, other, strict=True))), rtol=1e-4, atol=1e-4)


def test_the_fused_code_is_the_callers_to_write_to():
    model = hierarchy()
    code = draw(1, model.style_width)
    before = code.clone()
    fused = model.fuse(dict.fromkeys(model.tree.nodes, code.expand(3, -1)))
    fused += 1
    assert torch.equal(code, before)


def test_fused_codes_follow_the_weights():
    model, other = hierarchy(), hierarchy()
    codes = {n: draw(1, model.style_width, seed=i) for i, n in enumerate(model.tree.nodes)}
    model.fuse(codes)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        b.mul_(0.5)
        a.data.copy_(b)
    assert torch.equal(model.fuse(codes), other.fuse(codes))
