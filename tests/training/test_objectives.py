"""The pieces of the fusion objective on pictures whose answer is known."""

import math

import pytest
import torch

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.measurement import dilate
from stylefusion_hf.imaging.alignment import fit_similarity, region_axes
from stylefusion_hf.imaging.features import channel_energies
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.training import objectives as obj
from stylefusion_hf.training.choices import Shares
from stylefusion_hf.training.composed import (
    compose,
    masked_distance,
    offsets,
    pose_error,
    relative_distance,
    segmentation_loss,
)
from stylefusion_hf.training.contrastive import spatial_contrast
from stylefusion_hf.training.networks import soft_centers
from stylefusion_hf.training.sampling import count_codes, draw_assignment
from stylefusion_hf.training.start_gates import start_gates
from tests.tiny import tiny_fusion, tiny_generator


def similarity(angle, scale, dx, dy):
    a, b = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    return torch.tensor([[[a, -b, dx], [b, a, dy]]])


@pytest.mark.parametrize(("angle", "scale", "dx", "dy"), [(0, 1, 0, 0), (14, 1.1, 0.1, -0.2), (-30, 0.9, -0.3, 0.05)])
def test_fit_similarity_finds_the_one_that_was_applied(angle, scale, dx, dy):
    theta = similarity(angle, scale, dx, dy)
    points = torch.tensor([[[0.1, -0.4], [0.0, 0.5], [-0.3, 0.1]]])
    moved = points @ theta[0, :, :2].T + theta[0, :, 2]
    weight = torch.tensor([[1.0, 2.0, 0.5]])
    torch.testing.assert_close(fit_similarity(points, moved, weight), theta, atol=1e-5, rtol=1e-5)


def test_fit_similarity_with_too_little_to_go_by():
    one = torch.tensor([[[0.2, 0.3], [9.0, 9.0]]])
    other = torch.tensor([[[0.5, 0.1], [-9.0, 4.0]]])
    moved = fit_similarity(one, other, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(moved, similarity(0, 1, 0.3, -0.2), atol=1e-6, rtol=0)
    nothing = fit_similarity(one, other, torch.zeros(1, 2))
    torch.testing.assert_close(nothing, similarity(0, 1, 0, 0), atol=1e-6, rtol=0)


def test_fit_similarity_limits_the_scale():
    points = torch.tensor([[[0.5, 0.0], [-0.5, 0.0]]])
    theta = fit_similarity(points, points * 3, torch.ones(1, 2), scale_limit=1.2)
    torch.testing.assert_close(torch.hypot(theta[0, 0, 0], theta[0, 1, 0]), torch.tensor(1.2))


def squares(x: int) -> torch.Tensor:
    """Masks (1, 3, 32, 32): background, a square with a smaller square on it, both shifted by x; back to front."""
    labels = torch.zeros(32, 32, dtype=torch.long)
    labels[8:24, 6 + x : 22 + x] = 1
    labels[12:18, 10 + x : 16 + x] = 2
    return torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None].bool()


def test_outside_change_forgives_what_happens_inside():
    reference = torch.rand(1, 3, 32, 32)
    inside = dilate(squares(0)[:, 2], 1)
    image = reference + inside[:, None] * 0.5
    assert float(obj.outside_change(image, reference, inside)) == 0.0
    image[..., 0, 0] += 2
    torch.testing.assert_close(obj.outside_change(image, reference, inside), torch.tensor([12.0]))
    assert torch.equal(dilate(squares(0), 1)[:, 2], inside)
    assert inside.sum() == 8 * 8


def test_a_picture_is_put_together_back_to_front():
    base, other = squares(0), squares(4)
    claims = base.clone()
    claims[:, 2] = other[:, 2]  # the small square from elsewhere
    layout, owner = compose(claims, torch.zeros_like(claims))
    assert torch.equal(layout == 2, other[:, 2])
    gone = base[:, 2] & ~other[:, 2]
    assert (layout[gone] == -1).all()  # what shows where it was nobody knows
    assert torch.equal(layout, owner)
    claims = base.clone()
    claims[:, 0] = other[:, 0]  # the background of the other, which its squares hide in part
    hidden = torch.zeros_like(claims)
    hidden[:, 0] = base[:, 0] & ~other[:, 0]
    layout, owner = compose(claims, hidden)
    assert torch.equal(layout, base.float().argmax(dim=1))
    assert torch.equal(owner == -1, hidden[:, 0])


def test_relative_distance_is_0_at_the_target_and_1_at_the_stranger():
    target, stranger = torch.rand(2, 2, 3, 32, 32)
    mask = squares(0)[:, 1].expand(2, -1, -1)
    assert relative_distance(target, target, stranger, mask).tolist() == [0.0, 0.0]
    far = relative_distance(stranger, target, stranger, mask)
    assert ((far > 0.85) & (far < 1)).all()
    outside = torch.where(mask[:, None], target, stranger)
    assert relative_distance(outside, target, stranger, mask).tolist() == [0.0, 0.0]
    assert relative_distance(stranger, target, stranger, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


def test_masked_distance_forgives_small_shifts():
    x = torch.zeros(1, 3, 64, 64)
    x[..., 8], x[..., 9] = 1.0, -1.0  # a line moved by one pixel
    mask = torch.ones(1, 64, 64)
    none = torch.zeros_like(x)
    assert masked_distance(x, none, mask) < 0.6 * masked_distance(x.abs(), none, mask)
    torch.testing.assert_close(masked_distance(x.abs(), none, mask), torch.tensor([384.0]))  # at every cell size alike


def textured(size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """(1, 3, size, size): the same picture at every size, smooth forms and a weave of 1/20 of the width, moved right
    by `shift` of the width.
    """
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    x = x - shift
    a, b, phase = torch.randn(3, 6, 1, 1, generator=draw)
    waves = torch.sin(4 * a * x + 4 * b * y + phase)  # (6, H, W)
    forms = torch.einsum("ck,khw->chw", torch.randn(3, 6, generator=draw), waves)
    weave = torch.sin(2 * torch.pi * 20 * (x + 0.3 * y + seed)) * 0.3
    return (forms / 4 + weave)[None]


def test_a_perfect_region_a_cell_off_costs_the_same_at_every_size():
    costs, wrong = [], []
    for size in (64, 128, 256):
        y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size - 0.5] * 2, indexing="ij")
        mask = (x.square() + y.square() < 0.09)[None]
        target, stranger = textured(size, 1), textured(size, 2)
        costs.append(float(relative_distance(textured(size, 1, 1 / 64), target, stranger, mask)))
        wrong.append(float(relative_distance(textured(size, 3), target, stranger, mask)))
    assert max(costs) < 1.15 * min(costs)
    assert max(costs) < 0.5 * min(wrong)
    assert max(wrong) < 1.15 * min(wrong)


def test_detail_finer_than_a_cell_counts_by_its_strength():
    draw = torch.Generator().manual_seed(0)
    smooth = textured(256, 1)
    grain = 0.5 * torch.randn(2, 3, 256, 256, generator=draw)
    mask, stranger = torch.ones(1, 256, 256), textured(256, 2)
    target = smooth + grain[:1]
    same_kind, none = (relative_distance(x, target, stranger, mask) for x in (smooth + grain[1:], smooth))
    assert float(same_kind) < 0.5 * float(none)


def test_segmentation_loss_asks_for_regions_or_for_their_absence():
    base, other = squares(0), squares(4)
    frame = base.float().argmax(dim=1)
    layout = frame.clone()
    layout[base[:, 2] & ~other[:, 2]] = -1  # the small square went to the right
    layout[other[:, 2]] = 2

    def loss(masks):
        return float(segmentation_loss((masks.float() * 12).softmax(dim=1), layout, frame))

    moved = base.clone()
    moved[:, 2], moved[:, 1] = other[:, 2], (base[:, 1] | base[:, 2]) & ~other[:, 2]
    assert loss(moved) < 1e-3
    assert loss(base) > 0.1


def test_pooled_contrast_wants_the_owner_and_leaves_out_look_alikes():
    draw = torch.Generator().manual_seed(0)
    positive, others = torch.randn(2, 3, 16, generator=draw), torch.randn(50, 3, 16, generator=draw)
    right = obj.pooled_contrast(positive, positive, others)
    wrong = obj.pooled_contrast(others[:2], positive, others)
    assert right.shape == (2, 3)
    assert right.max() < 0.1 < 1 < wrong.min()
    alike = torch.cat([others, positive[:1] * 1.01])
    torch.testing.assert_close(obj.pooled_contrast(positive, positive, alike)[0], right[0])
    assert obj.pooled_contrast(positive, positive, alike, max_cosine=2.0)[0].min() > 0.6  # as likely as its double


def test_spatial_contrast_is_about_places_where_codes_differ():
    draw = torch.Generator().manual_seed(0)
    masks = squares(0).float()
    first, second = torch.randn(2, 1, 16, 32, 32, generator=draw)
    references = torch.stack([first, first, second], dim=1)  # the small square is another code's
    composed = torch.where(masks[:, 2:] > 0, second, first)
    assert float(spatial_contrast(composed, references, masks)) < 0.01
    assert float(spatial_contrast(first, references, masks)) > 0.1
    assert float(spatial_contrast(second, references, masks)) > 2
    same = torch.stack([first] * 3, dim=1)
    assert float(spatial_contrast(second, same, masks)) == 0.0  # nothing to tell apart


def test_middles_follow_the_picture_and_poses_are_compared_by_them():
    left, right = (squares(x).float() for x in (0, 4))
    middles = [soft_centers(x) for x in (left, right)]
    torch.testing.assert_close((middles[1] - middles[0])[0, 2], torch.tensor([4 * 2 / 32, 0.0]))
    weight = torch.tensor([[1.0, 3.0]])
    error = pose_error(middles[0][:, 1:], middles[1][:, 1:], weight)
    torch.testing.assert_close(error, torch.tensor([0.25]), atol=1e-3, rtol=0)
    assert float(pose_error(middles[0][:, 1:], middles[0][:, 1:], weight)) < 1e-6
    apart = offsets(middles[0], [([2], [1])]) - offsets(middles[1], [([2], [1])])
    torch.testing.assert_close(apart, torch.zeros(1, 1, 2))  # both moved alike


def test_regions_that_lack_most_weigh_most():
    weights = obj.deficit_weights(torch.tensor([0.8, 0.5, 0.1]), power=1.0)
    torch.testing.assert_close(weights, torch.tensor([0.375, 0.9375, 1.6875]))
    assert obj.deficit_weights(torch.tensor([0.999, 0.0, 0.0, 0.0]), 2.0).min() == pytest.approx(1 / 3)
    assert torch.equal(obj.deficit_weights(torch.tensor([0.9, 0.1]), 0.0), torch.ones(2))
    assert obj.implausibility(torch.tensor([[-20.0], [20.0]])).tolist() == pytest.approx([20.0, 0.0], abs=1e-6)


def test_channel_energies_and_the_gates_that_start_from_them():
    g = tiny_generator(use_noise=False)
    s = torch.randn(8, g.style_dim)
    labels = torch.zeros(8, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 1
    energies = channel_energies(g.synthesis, s, labels, 2)
    assert energies.shape == (2, g.style_dim)
    assert (energies > 0).float().mean() > 0.9
    assert all(p.grad is None for p in g.parameters())
    fusion = tiny_fusion(g, "all*(left, right)", gate_bias=True, common_conv_layers=2, common_rgb_layers=1)
    for net in fusion.nets.values():
        for blender in (net.blender_segments, net.blender_common):
            torch.nn.init.zeros_(blender.layers[-1].weight)
            torch.nn.init.zeros_(blender.layers[-1].bias)
    start_gates(fusion, energies, ["left", "right"])
    codes = {n: torch.randn(1, g.style_dim) for n in fusion.tree.nodes}
    gate = fusion.gates(codes)["all"][0]
    more_right = energies[1] > energies[0]
    assert gate[more_right].min() >= 0.49
    assert gate[~more_right].max() <= 0.51


def test_assignments_follow_the_tree():
    tree, shares = RegionTree.preset("avatar"), Shares(twin=0.3)
    drawn = draw_assignment(tree, 4000, torch.Generator().manual_seed(0), shares)
    nodes, twin = drawn.nodes, drawn.twin
    names = list(tree.nodes)
    leaves, inner = ([names.index(n) for n in group] for group in (tree.leaves, tree.inner))
    assert nodes.min() == 0
    assert nodes.max() < count_codes(tree)
    assert (nodes > 0).any(dim=1).all()  # nothing is asked of a picture that is the base itself
    single = ((nodes[:, leaves] > 0).sum(1) == 1) & (nodes[:, inner] == 0).all(1) & (twin < 0)
    assert single.float().mean() > 0.25
    assert {names[int(row.nonzero()[0])] for row in nodes[single]} == set(tree.leaves)
    root_alone = ((nodes > 0).sum(1) == 1) & (nodes[:, names.index(tree.root)] > 0)
    assert 0.03 < root_alone.float().mean() < 0.1
    pairs = (twin >= 0).nonzero()[:, 0]
    assert len(pairs) > 300
    assert torch.equal(twin[pairs], pairs - 1)
    differs = nodes[pairs] != nodes[twin[pairs]]
    assert (differs.sum(1) == 1).all()
    assert not differs[:, inner].any()
    again = draw_assignment(tree, 4000, torch.Generator().manual_seed(0), shares)
    assert torch.equal(again.nodes, nodes)


@pytest.mark.parametrize("wrong", [{"codes": (1, 1, 0, 0)}, {"inner": (0.5, 0.5)}, {"single": 1.5}, {"twin": -0.1}])
def test_shares_must_be_shares(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shares(**wrong)


def test_codes_are_drawn_within_their_truncation():
    g = tiny_generator(use_noise=False)
    draw = torch.Generator().manual_seed(0)
    plain = draw_codes(g, 100, draw, min_psi=0.5, mixed_share=0.0)
    assert plain.shape == (100, g.style_dim)
    assert torch.equal(draw_codes(g, 100, torch.Generator().manual_seed(0), 0.5, 0.0), plain)
    centre = g.to_style(g.w_avg[None])
    mean = draw_codes(g, 8, draw, min_psi=0.0, mixed_share=0.0)
    assert (mean - centre).norm(dim=1).min() < (plain - centre).norm(dim=1).median()
    # Off W: style-mixed and jittered codes are not the affine image of a single w.
    weight = g.affine_weight * g.affine_gain
    for share, most in ((0.0, 1e-4), (1.0, 1e6)):
        codes = draw_codes(g, 64, draw, 0.5, share) - g.affine_bias
        w = torch.linalg.lstsq(weight, codes.T).solution
        apart = (weight @ w - codes.T).norm(dim=0)
        assert apart.max() < most
        if share:
            assert apart.min() > 1e-2


def test_a_bars_axis_leans_as_the_bar_does():
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    for degrees in (0, 30, 90, 120):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        along, across = (xs - 0.1) * c + ys * s, ys * c - (xs - 0.1) * s
        labels = ((along.abs() < 0.6) & (across.abs() < 0.1)).long()[None]
        first, second = region_axes(labels, 2)[0, 1]
        torch.testing.assert_close((first + second) / 2, torch.tensor([0.1, 0.0]), atol=0.02, rtol=0)
        x, y = (second - first).tolist()
        assert abs(math.hypot(x, y) / 2 - 0.6 / math.sqrt(3)) < 0.02  # deviation of a uniform bar
        assert abs((math.degrees(math.atan2(y, x)) - degrees + 90) % 180 - 90) < 2
