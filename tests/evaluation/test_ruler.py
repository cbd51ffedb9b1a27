"""The ruler on pictures whose answer is known: colored blocks, and avatars that the renderer swaps exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

from stylefusion_hf.evaluation import published
from stylefusion_hf.evaluation.calibration import calibrate, recolour
from stylefusion_hf.evaluation.figures import figures, measurable_heads
from stylefusion_hf.evaluation.judged import join_images
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.recognition import Gallery
from stylefusion_hf.evaluation.ruler import Ruler, dilate
from stylefusion_hf.evaluation.statistics import resamples
from stylefusion_hf.imaging.features import colour, core, layout, texture

SIZE = 64
# Colors that tell the planted segmenter what is where; the red channel is free to be a look.
GREEN = {"background": -1.0, "body": 0.0, "hat": 1.0}


class ByGreen(torch.nn.Module):
    """Regions by the green channel, back to front."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(regions=list(GREEN))

    def segment(self, images: torch.Tensor, return_features: bool = False):
        levels = torch.tensor(list(GREEN.values()))[:, None, None]
        logits = -30 * (images[:, 1:2] - levels).square()
        return (logits, images) if return_features else logits


def scene(n: int, body_red=0.5, hat_red=-0.5, hat=(8, 24), at=(20, 16)) -> torch.Tensor:
    """A hat on a body before a background: (n, 3, 64, 64), a little different in blue so that nothing is constant."""
    x = torch.zeros(n, 3, SIZE, SIZE)
    x[:, 0], x[:, 1] = -0.8, GREEN["background"]
    top, left = at
    body = (slice(None), slice(top, top + 30), slice(left, left + 30))
    x[:, 1][body], x[:, 0][body] = GREEN["body"], body_red
    height, width = hat
    worn = (slice(None), slice(top - height // 2, top + height // 2), slice(left, left + width))
    x[:, 1][worn], x[:, 0][worn] = GREEN["hat"], hat_red
    x[:, 2] = torch.linspace(-0.1, 0.1, n)[:, None, None]
    return x


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    return Ruler(ByGreen(), pose_regions=["body"])


@pytest.fixture(scope="module")
def comparison(ruler):
    base, source = scene(12), scene(12, body_red=-0.2, hat_red=0.9, hat=(12, 16))
    return ruler.compare(ruler.look(base), ruler.look(source))


def read(ruler, comparison, region: str, images: torch.Tensor) -> dict[str, float]:
    columns = ruler.measure(comparison, region, ruler.look(images))
    return {k: float(v[0]) for k, v in figures(columns, resamples(len(images), 5)).items()}


def test_no_change_is_nothing_everywhere(ruler, comparison):
    for region in ("body", "hat", "background"):
        found = read(ruler, comparison, region, comparison.base.images)
        assert found["outside"] == found["flips"] == found["noticed"] == 0
        if region == "background":  # the same in base and source: there is nothing to transfer
            assert math.isnan(found["transfer"])
        else:
            assert found["transfer"] == found["response"] == 0


def test_the_true_swap_is_all_transfer_and_nothing_outside(ruler, comparison):
    found = read(ruler, comparison, "hat", scene(12, hat_red=0.9, hat=(12, 16)))
    assert found["outside"] < 1e-6
    assert found["transfer"] > 0.95
    assert found["transfer_colour"] > 0.95
    assert found["transfer_outline"] > 0.95
    assert found["area"] < 0.01


def test_recolouring_moves_the_colour_head_alone(ruler, comparison):
    found = read(ruler, comparison, "hat", scene(12, hat_red=0.9))
    assert found["transfer_colour"] > 0.95
    assert found["transfer_outline"] < 0.05


def test_everything_swapped_is_one_outside(ruler, comparison):
    found = read(ruler, comparison, "hat", comparison.source.images)
    assert found["outside"] == pytest.approx(1)
    assert found["noticed"] == pytest.approx(1)
    assert found["transfer"] > 0.95


def test_what_moves_outside_is_counted_and_what_moves_inside_is_not(ruler, comparison):
    leaking = scene(12, body_red=0.15, hat_red=0.9, hat=(12, 16))  # half of the body's way to the source
    found = read(ruler, comparison, "hat", leaking)
    assert 0.15 < found["outside"] < 0.35  # squared: about a quarter
    assert found["leak"] > 0.1


def test_the_outside_figure_is_a_ratio_of_sums_with_a_mask_for_each_picture(ruler):
    """Two unlike pairs, by hand: O = (w1 d1 + w2 d2) / (w1 + w2), neither a mean of ratios nor one mask for all."""
    base = torch.cat([scene(1), scene(1, at=(24, 8))])
    source = torch.cat([scene(1, body_red=-0.5, hat_red=0.9), scene(1, body_red=0.3, hat_red=0.9, at=(24, 8))])
    after = torch.cat([scene(1, body_red=0.0, hat_red=0.9), scene(1, hat_red=0.9, at=(24, 8))])
    for x in (base, source, after):
        x[:, 2] = 0
    found = read(ruler, ruler.compare(ruler.look(base), ruler.look(source)), "hat", after)
    # Equally many pixels of body lie outside in both. Red goes from .5 to 0, the source's is -.5; and from .5 nowhere,
    # the source's is .3.
    assert found["outside"] == pytest.approx(0.5**2 / (1.0**2 + 0.2**2), rel=1e-4)


def test_a_region_that_vanishes_transfers_nothing(ruler, comparison):
    found = read(ruler, comparison, "hat", scene(12, hat=(0, 0)))
    assert found["transfer"] == pytest.approx(0)


def test_pairs_without_the_region_do_not_count(ruler):
    base, source = scene(6), scene(6, hat=(0, 0))
    columns = ruler.measure(ruler.compare(ruler.look(base), ruler.look(source)), "hat", ruler.look(base))
    assert columns["counts"].sum() == 0


def test_what_lies_in_front_hides_the_region():
    """A source whose body differs only under its own large hat has nothing to transfer."""
    ruler = Ruler(ByGreen(), pose_regions=["hat"])  # whose middle does not move when it grows
    base, source = scene(8, hat=(8, 30)), scene(8, hat=(40, 30))
    c = ruler.compare(ruler.look(base), ruler.look(source))
    columns = ruler.measure(c, "body", ruler.look(base))
    assert "outline" not in measurable_heads(columns)


def test_a_source_elsewhere_is_brought_into_pose(ruler):
    base = scene(8)
    source = scene(8, hat_red=0.9, hat=(12, 16), at=(26, 24))
    c = ruler.compare(ruler.look(base), ruler.look(source))
    found = read(ruler, c, "hat", scene(8, hat_red=0.9, hat=(12, 16)))
    assert found["transfer"] > 0.9
    assert float(ruler.pose_gap(c.base, c.source).mean()) == pytest.approx(0.156, abs=0.01)  # (6, 8) of 64 pixels


def test_specific_transfer_is_what_depends_on_the_source(ruler, comparison):
    """By hand, for the color of the hat: b's red is .9, c's is .2; a method goes half of the way there."""
    images = [scene(12, hat_red=(-0.5 + red) / 2) for red in (0.9, 0.2)]
    after, other = (ruler.look(x) for x in images)
    columns = ruler.measure(comparison, "hat", after, unrelated=other)
    found = {k: float(v[0]) for k, v in figures(columns, resamples(12, 5), ("colour",)).items()}
    assert found["transfer"] == pytest.approx(0.5, abs=0.02)  # .2 is half of the way from -.5 to .9
    assert found["specific"] == pytest.approx(1 - 0.7 / 1.05, abs=0.02)  # |.2 - .9| against |-.15 - .9|
    ignoring = figures(ruler.measure(comparison, "hat", after, unrelated=after), resamples(12, 5), ("colour",))
    assert (ignoring["specific"] == 0).all()
    assert "specific" not in figures(ruler.measure(comparison, "hat", after), resamples(12, 5))


def test_the_source_is_recognized_among_sixteen(ruler):
    """Hats of 40 reds; a planted method draws each source's own, and another one the same for all."""
    reds = torch.linspace(-1, 1, 41)
    base = ruler.look(scene(12))
    source = ruler.look(torch.cat([scene(1, hat_red=float(r)) for r in reds[20:32]]))
    pairs = ruler.compare(base, source)
    wrong = [ruler.look(torch.cat([scene(1, hat_red=float(r)) for r in reds[:20]]))]
    gallery = Gallery(ruler, join_images(wrong), {"hat": ("colour",)}, {"hat": {"colour": 1.0}})
    candidates = gallery.candidates(pairs, ["hat"], 0)["hat"]
    assert len(candidates) == 15
    found = gallery.recognize(pairs, "hat", source, candidates)
    assert (found["recognized"] == 1).all() and (found["candidates"] == 16).all()
    other = ruler.look(scene(12, hat_red=-0.7))
    assert float(gallery.recognize(pairs, "hat", other, candidates)["recognized"].sum()) == 0
    vanished = ruler.look(scene(12, hat=(0, 0)))
    assert float(gallery.recognize(pairs, "hat", vanished, candidates)["recognized"].sum()) == 0
    tied = Gallery(ruler, source[:1], {"hat": ("colour",)}, {"hat": {"colour": 1.0}})
    same = ruler.compare(base[:1], source[:1])
    share = tied.recognize(same, "hat", source[:1], tied.candidates(same, ["hat"], 0)["hat"])
    assert share["recognized"].tolist() == [0.5]  # two equal answers share it


# --- As other papers measure it --------------------------------------------------------------------------------------


def test_stylemapgans_errors_by_hand():
    source, reference = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    image = source.clone()
    image[..., :2] = 0.5
    image[..., 3] = 0.1
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[..., :2] = True
    c = published.masked_errors(image, source, reference, region)
    assert float(c["MSE_ref"] / c["MSE_ref_of"]) == pytest.approx(0.25)
    assert float(c["MSE_src"] / c["MSE_src_of"]) == pytest.approx(0.005)  # half of the outside moved by .1


def test_the_attribute_dependency_by_hand():
    before = {"hair": torch.zeros(1, 2), "mouth": torch.zeros(1, 2), "eyes": torch.zeros(1, 2)}
    after = {"hair": torch.tensor([[2.0, -4.0]]), "mouth": torch.tensor([[1.0, 1.0]]), "eyes": torch.zeros(1, 2)}
    deviations = {"hair": torch.tensor([1.0, 2.0]), "mouth": torch.tensor([2.0, 2.0]), "eyes": torch.ones(2)}
    regions = {"hair": "hair", "mouth": "mouth", "eyes": "eyes"}
    found = published.attribute_change(before, after, deviations, regions, "hair")
    assert float(found["AD target"]) == pytest.approx(2)
    assert float(found["AD"]) == pytest.approx(0.25)
    assert float(found["max AD"]) == pytest.approx(0.5)


def test_masks_are_widened_for_each_picture_by_itself():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 2:4, 2:4] = True
    wide = dilate(mask, 1)
    assert wide[0].sum() == 16
    assert wide[1].sum() == 0


# --- Features --------------------------------------------------------------------------------------------------------


def blob(left: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 16:40, left : left + width] = 1
    return mask


def test_colour_is_the_middles_and_a_border_hardly_counts():
    x, mask = torch.full((1, 3, SIZE, SIZE), -1.0), blob(10, 20)
    x[:, 0] = torch.where(mask > 0, 0.6, -1.0)
    wide = blob(9, 22)  # a mask that takes a pixel of the neighbor in on either side
    torch.testing.assert_close(colour(x, mask)[0, 0], torch.tensor(0.6))
    assert abs(float(colour(x, wide)[0, 0]) - 0.6) < 0.08
    assert float(colour(x, torch.zeros_like(mask)).abs().sum()) == 0
    assert float(core(mask)[0, 28, 20]) == 1


def test_texture_does_not_see_colours_but_sees_edges():
    mask = blob(10, 24)
    x = torch.zeros(1, 3, SIZE, SIZE)
    striped = x.clone()
    striped[:, :, 24:30] = 0.8
    recoloured = striped * torch.tensor([0.5, -1.0, 0.2])[:, None, None] + 0.1
    edges, same = texture(striped, mask), texture(recoloured, mask)
    assert float((edges - same).abs().sum()) < 0.15 * float((edges - texture(x, mask)).abs().sum())
    neighbour = torch.where(mask > 0, striped, 0.9)  # what lies outside plays no part
    torch.testing.assert_close(texture(neighbour, mask), edges, atol=1e-4, rtol=0)


def test_layout_changes_with_the_outline_in_proportion():
    a, near, far = layout(blob(10, 20)), layout(blob(11, 20)), layout(blob(30, 20))
    assert float((a - near).abs().sum()) < 0.15 * float((a - far).abs().sum())
    assert a.shape == (1, 64)


# --- The renderer ----------------------------------------------------------------------------------------------------


def test_recolouring_keeps_the_parts():
    from stylefusion_hf.data.avatars import avatar_spec

    a, b = avatar_spec(0), avatar_spec(1)
    mixed = recolour(a, b, "hair")
    assert mixed.top == a.top
    assert mixed.hair_colour == b.hair_colour
    assert mixed.clothes_colour == a.clothes_colour


def test_calibration_needs_a_measuring_size(ruler):
    with pytest.raises(ValueError, match="avatars at the measuring size: give the ruler one"):
        calibrate(ruler, count=2)


@pytest.mark.parametrize("count", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_the_ruler_reads_true_swaps_of_avatars(count):
    """Drawn exactly by the renderer and judged by the shipped judges, at the embedded model's size."""
    pytest.importorskip("python_avatars")
    judges = load_judges()
    ruler = Ruler(judges.segmenter, judges.portrait, size=judges.portrait.config.resolution)
    found = calibrate(ruler, count=count)
    for region, swaps in found.items():
        assert swaps["true swap"]["outside"].value <= 0.02
        assert swaps["true swap"]["transfer"].value >= 0.91, region
        assert swaps["true swap"]["specific"].value >= 0.85, region
        assert swaps["true swap"]["recognition"].value >= 0.6, region
        assert swaps["unchanged"]["transfer"].value == swaps["unchanged"]["outside"].value == 0
        for ignoring in ("unchanged", "random region"):  # exactly, in every resample
            e = swaps[ignoring]["specific"]
            assert e.value == e.low == e.high == 0, region
            assert swaps[ignoring]["recognition"].value < 0.3, region
        # A region that has no more than its color, such as the skin, is wholly swapped by recolouring it.
        if not any(math.isnan(swaps["true swap"][f"transfer_{h}"].value) for h in ("texture", "outline")):
            assert swaps["recoloured"]["transfer"].value <= 0.4, region
    true = [swaps["true swap"]["transfer"].value for swaps in found.values()]
    assert sum(true) / len(true) >= 0.95
    for figure in ("specific", "recognition"):
        every = [swaps["true swap"][figure].value for swaps in found.values()]
        assert sum(every) / len(every) >= {"specific": 0.93, "recognition": 0.8}[figure]
    chance = [swaps[name]["recognition"].value for swaps in found.values() for name in ("unchanged", "random region")]
    assert 0.02 < sum(chance) / len(chance) < 0.13  # 1 in 16
    assert found["hair"]["true swap"]["became"].value > 0.8
    assert found["hair"]["recoloured"]["became"].value < 0.2
