"""Rows that a fusion net need not compute, and values that are kept between calls."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stylefusion_hf import FusionHierarchy
from stylefusion_hf.models.fusion_net import FusionNet
from stylefusion_hf.models.prepared import Prepared

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


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, SWITCHES], ids=["authors", "switches"])
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


# --- Prepared values -------------------------------------------------------------------------------------------------


def doubled(x):
    doubled.calls += 1
    return x * 2


@pytest.fixture
def prepared():
    doubled.calls = 0
    return Prepared(doubled), nn.Parameter(draw(30), requires_grad=False)


CHANGES = {
    "in place": lambda p: p.add_(1),
    "data.copy_, as diffusers' EMAModel does": lambda p: p.data.copy_(p + 1),
    "data =": lambda p: setattr(p, "data", p + 1),
    "another dtype": lambda p: setattr(p, "data", p.to(torch.float16)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_prepared_values_follow_their_parameter(prepared, change):
    keep, parameter = prepared
    with torch.no_grad():
        assert keep(parameter) is keep(parameter) and doubled.calls == 1
        change(parameter)
        assert torch.equal(keep(parameter), parameter * 2) and doubled.calls == 2
        assert keep(parameter) is keep(parameter)


def test_prepared_values_have_gradients_where_they_are_wanted(prepared):
    keep, parameter = prepared
    keep(parameter)
    parameter.requires_grad_()
    keep(parameter).sum().backward()
    assert torch.equal(parameter.grad, torch.full((30,), 2.0))
    with torch.no_grad():
        assert not keep(parameter).requires_grad


def test_prepared_values_are_not_copied_or_saved(prepared):
    keep, parameter = prepared
    keep(parameter)
    assert copy.deepcopy(keep).kept is None and pickle.loads(pickle.dumps(keep)).kept is None


def test_fused_codes_follow_the_weights():
    model, other = hierarchy(), hierarchy()
    codes = {n: draw(1, model.style_width, seed=i) for i, n in enumerate(model.tree.nodes)}
    model.fuse(codes)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        b.mul_(0.5)
        a.data.copy_(b)
    assert torch.equal(model.fuse(codes), other.fuse(codes))
