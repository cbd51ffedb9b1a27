"""Generator and discriminator against what NVIDIA's and rosinality's code computed (see tests/parity.py)."""

import pytest
import torch
import torch.nn.functional as F

from stylefusion_hf.conversion.nvidia import nvidia_discriminator, nvidia_generator
from stylefusion_hf.conversion.rosinality import rosinality_generator
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from tests.parity import draw_weights, load_case, relative_error, style_vectors

NVIDIA = [
    ("nvidia-ada", "ada-tiny32"),
    ("nvidia-ada", "ada-cond64"),
    ("nvidia-ada", "ada-paper256"),
    ("nvidia-sg3", "sg3-tiny32"),
]


def load(cls, converted):
    model = cls(**converted.config)
    model.load_state_dict(converted.state, strict=True)
    assert converted.unused == []
    return model.eval()


@pytest.mark.parametrize(("which", "case"), NVIDIA)
@torch.no_grad()
def test_nvidia(which, case):
    data = load_case("nvidia-" + case)
    g = load(
        StyleGAN2Generator,
        nvidia_generator(draw_weights(which, f"{case}/G"), conv_clamp=256 if "cond" in case else None),
    )
    d = load(StyleGAN2Discriminator, nvidia_discriminator(draw_weights(which, f"{case}/D")))
    c = data.get("c")
    w = g.mapping(data["z"], c)
    rows = w[:, None].expand(-1, g.num_ws, -1)
    assert relative_error(rows, data["ws"]) < 1e-4
    w07 = g.truncate(w, 0.7)
    cut = g.truncate(w, 0.5, cutoff=4)
    assert relative_error(w07[:, None].expand_as(rows), data["ws_psi0.7"]) < 1e-4
    assert relative_error(cut, data["ws_psi0.5_cutoff4"]) < 1e-4
    image = g.synthesis(g.to_style(w07))
    assert (image - data["image_const"]).abs().max() < 1e-3 * data["image_const"].std()
    if "image_none" in data:
        image_none = g.synthesis(g.to_style(cut), noise_mode="none")
        assert (image_none - data["image_none"]).abs().max() < 1e-3 * data["image_none"].std()
    logits = d(data["image_const"], c).logits
    assert relative_error(logits, data["logits"]) < 1e-3


@pytest.mark.parametrize("size", [32, 256])
@torch.no_grad()
def test_rosinality(size):
    data = load_case(f"rosinality-{size}")
    g = load(
        StyleGAN2Generator,
        rosinality_generator(draw_weights("stylefusion", f"rosinality-{size}"), data["mean_latent"]),
    )
    w = g.mapping(data["z"])
    assert relative_error(w, data["w"]) < 1e-4
    s = g.to_style(g.truncate(w, 0.7))
    for name, vector in g.split_style(s).items():
        assert relative_error(vector, data[f"s.{name}"]) < 1e-4, name
    image = g.synthesis(s)
    assert (image - data["image"]).abs().max() < 1e-3 * data["image"].std()


@pytest.mark.parametrize(("domain", "size"), [("church", 256), ("car", 512), ("ffhq", 1024)])
@torch.no_grad()
def test_images_of_the_authors_fused_codes(domain, size):
    """Their fused style codes, rendered by this generator: block means and the central 64 x 64 of their image."""
    data = load_case(f"hierarchy-{domain}")
    weights = draw_weights("stylefusion", f"rosinality-{size}")
    g = load(StyleGAN2Generator, rosinality_generator(weights, data["mean_latent"]))
    calls = [name.split(".")[0] for name in data if name.endswith("image_crop")]
    for call in sorted(calls):
        conv, rgb = style_vectors(data, f"{call}.")
        image = g.synthesis(torch.cat([*conv, *rgb], dim=1))
        means = F.avg_pool2d(image, size // 64)
        middle = slice(size // 2 - 32, size // 2 + 32)
        assert (image[..., middle, middle] - data[f"{call}.image_crop"]).abs().max() < 1e-3 * image.std()
        assert (means - data[f"{call}.image_mean8"]).abs().max() < 1e-3 * image.std()
