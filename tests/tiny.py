"""Tiny models with random weights: whole pipelines that are built in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stylefusion_hf import (
    FusionHierarchy,
    ImageEncoder,
    MobileStyleGANGenerator,
    RegionSegmenter,
    RegionTree,
    StyleFusionPipeline,
    StyleGAN2Generator,
    StyleGAN3Generator,
    StyleGenerator,
)

RESOLUTION, Z_DIM, W_DIM = 32, 16, 16
NUM_WS, STYLE_DIM = 8, 88  # of `tiny_generator`


def tiny_generator(seed: int = 0, **changes: Any) -> StyleGAN2Generator:
    """32 px, 8 channels everywhere, z = w = 16; noise inputs and a mean w that matter."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {"resolution": RESOLUTION, "channels": [8] * 4, "z_dim": Z_DIM, "w_dim": W_DIM}
    generator = StyleGAN2Generator(**(config | {"mapping_layers": 2} | changes))
    generator.w_avg.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return generator.eval()


def tiny_mobile_generator(seed: int = 0, **changes: Any) -> MobileStyleGANGenerator:
    """32 px, 8 rows of w+ as `tiny_generator`, noise inputs and a mean w that matter."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {"resolution": RESOLUTION, "channels": [8, 8, 6], "z_dim": Z_DIM, "w_dim": W_DIM}
    generator = MobileStyleGANGenerator(**(config | {"mapping_layers": 2} | changes))
    generator.w_avg.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return generator.eval()


def tiny_stylegan3_generator(seed: int = 0, **changes: Any) -> StyleGAN3Generator:
    """32 px, 4 layers, 6 rows of w+; an input that moves and a mean w that matter."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {"resolution": RESOLUTION, "channels": [8, 8, 8, 8, 6], "z_dim": Z_DIM, "w_dim": W_DIM}
    generator = StyleGAN3Generator(**(config | {"num_layers": 4} | changes))
    generator.w_avg.normal_()
    with torch.no_grad():
        generator.affine_weight[:4].normal_(std=0.2)
    return generator.eval()


def tiny_fusion(generator: StyleGenerator, tree: Any = "avatar", seed: int = 0, **changes: Any) -> FusionHierarchy:
    """Fusion nets with gates that differ from number to number."""
    torch.manual_seed(seed)
    sizes = {"conv_sizes": generator.conv_sizes, "rgb_sizes": generator.rgb_sizes}
    config = {"padded_width": 8, "hidden_width": 16, "num_indicators": 8, "indicator_repeats": 1, "lr_multiplier": 1.0}
    fusion = FusionHierarchy(tree=tree, **(sizes | config | changes))
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    return fusion.eval()


def tiny_segmenter(tree: Any = "avatar", seed: int = 0) -> RegionSegmenter:
    """The leaves of a tree."""
    torch.manual_seed(seed)
    return RegionSegmenter(regions=list(RegionTree.of(tree).leaves), channels=[4, 4], groups=2).eval()


def tiny_encoder(seed: int = 0) -> ImageEncoder:
    """An encoder that says something of its picture."""
    torch.manual_seed(seed)
    config = {"num_ws": NUM_WS, "w_dim": W_DIM, "resolution": RESOLUTION, "channels": [8, 8]}
    encoder = ImageEncoder(**config, groups=4, reduced=2, features=16)
    torch.nn.init.normal_(encoder.to_code.weight, std=0.3)
    return encoder.eval()


class TinyEncoder(torch.nn.Module):
    """A stand-in for an image encoder: w+ rows that say how bright the image is."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return images.mean((1, 2, 3))[:, None, None].expand(-1, NUM_WS, W_DIM)


def tiny_pipeline(tree: Any = "avatar", segmenter: bool = False, **changes: Any) -> StyleFusionPipeline:
    """A whole pipeline; `changes` go to the generator."""
    generator = tiny_generator(**changes)
    parts = {"segmenter": tiny_segmenter(tree)} if segmenter else {}
    return StyleFusionPipeline(generator, tiny_fusion(generator, tree), **parts)


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    x, y = saved_weights(a), saved_weights(b)
    assert x.keys() == y.keys()
    assert [k for k in x if not torch.equal(x[k], y[k])] == []


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same ones for a shape and a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def style_codes(g: StyleGenerator, batch: int = 2, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return g.to_style(draw(batch, W_DIM, seed=seed))
