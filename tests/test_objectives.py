"""The pieces of the fusion objective on pictures whose answer is known."""

import math

import pytest
import torch

from stylefusion_hf.alignment import fit_similarity, region_axes
from stylefusion_hf.features import channel_energies
from stylefusion_hf.regions import RegionTree
from stylefusion_hf.training import objectives as obj
from stylefusion_hf.training.fusion import CODES, draw_assignment, mix, start_gates
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


def scene(x: int, colour: float) -> tuple[torch.Tensor, torch.Tensor]:
    """32 px: background 0, a square 1 with a smaller square 2 on it, both shifted by x."""
    labels = torch.zeros(32, 32, dtype=torch.long)
    labels[8:24, 6 + x : 22 + x] = 1
    labels[12:18, 10 + x : 16 + x] = 2
    return (labels[None].float() / 2 - colour).expand(3, -1, -1), labels


def composed(source, pose=0):
    images, labels = zip(scene(0, 0.1), scene(4, 0.9), strict=True)
    return obj.compose_target(
        torch.stack(images)[None], torch.stack(labels)[None], torch.tensor([source]), torch.tensor([pose]), [1, 2], [0]
    )


def test_a_target_without_a_swap_is_the_image_itself():
    target, owner, layout = composed([0, 0, 0])
    image, labels = scene(0, 0.1)
    assert torch.equal(target[0], image)
    assert torch.equal(owner[0], labels)
    assert torch.equal(layout, owner)


def test_a_swapped_region_comes_from_its_source_in_the_pose_of_the_base():
    target, _, layout = composed([0, 0, 1])
    base, labels = scene(0, 0.1)
    other, _ = scene(4, 0.9)
    small = labels == 2
    torch.testing.assert_close(target[0][:, small], other[:, scene(4, 0)[1] == 2], atol=1e-4, rtol=0)
    assert torch.equal(target[0][:, ~small], base[:, ~small])
    assert torch.equal(layout[0], labels)


def test_what_the_source_hides_is_unknown_but_stays_its_region():
    target, owner, layout = composed([1, 0, 0])  # the background of the other, which its square hides in part
    _, base_labels = scene(0, 0)
    _, other_labels = scene(4, 0)
    hidden = (base_labels == 0) & (other_labels != 0)
    assert hidden.any()
    assert (owner[0][hidden] == -1).all()
    assert (layout[0][hidden] == 0).all()
    seen = (base_labels == 0) & (other_labels == 0)
    torch.testing.assert_close(target[0][:, seen], scene(4, 0.9)[0][:, seen])


def test_the_pose_of_another_moves_what_is_not_static():
    _, owner, _ = composed([0, 0, 0], pose=1)
    _, labels = scene(4, 0)
    moved = labels > 0
    assert (owner[0][moved] == labels[moved]).float().mean() > 0.95
    assert (owner[0][:, :6] == 0).all()  # the background did not come along


def test_losses_know_good_from_bad():
    target, owner, layout = composed([0, 0, 1])
    base, other = scene(0, 0.1)[0][None], scene(4, 0.9)[0][None]
    swapped = torch.tensor([[False, False, True]])

    def losses(image):
        return [float(x) for x in obj.locality_and_transfer(image, target, owner, swapped, base, other)]

    assert losses(target) == [0.0, 0.0]
    locality, transfer = losses(base)  # nothing was swapped: local, but no transfer
    assert locality == 0.0
    assert 0.7 < transfer <= 1.0
    assert losses(other)[0] > 0.8  # everything was swapped

    def layout_of(labels):
        logits = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None] * 12.0
        return float(obj.layout_loss(logits, layout, scene(0, 0)[1][None]))

    assert layout_of(layout[0]) < 1e-3 < 0.5 < layout_of(scene(4, 0)[1])


def test_masked_distance_forgives_small_shifts_at_the_coarse_levels():
    x = torch.zeros(1, 3, 16, 16)
    x[..., 7], x[..., 8] = 1.0, -1.0  # a line moved by one pixel
    mask = torch.ones(1, 16, 16)
    assert obj.masked_distance(x, mask, levels=3) > obj.masked_distance(x, mask, levels=1) / 3.01
    assert obj.masked_distance(x.abs(), mask, levels=3) >= obj.masked_distance(x, mask, levels=3)


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
    tree = RegionTree.preset("avatar")
    drawn = draw_assignment(tree, 2000, torch.Generator().manual_seed(0))
    assert drawn.min() == 0
    assert drawn.max() == CODES - 1
    names = list(tree.nodes)
    single = (drawn > 0).sum(1) == 1
    swapped = {names[int(row.nonzero()[0])] for row in drawn[single]}
    assert swapped == {*tree.leaves, tree.root}  # one leaf, or the root's code alone
    styles = torch.arange(6.0).view(2, 3, 1).expand(2, 3, 4)
    codes = mix(tree, styles, torch.full((2, len(names)), 2))
    assert torch.equal(codes["hair"], styles[:, 2])


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
