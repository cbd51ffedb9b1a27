"""What a user's script looks like to type checkers: checked by mypy and pyright in `make lint`, never run."""

from typing import Any, assert_type

import numpy as np
import torch
from PIL import Image

from stylefusion_hf import (
    Code,
    FusionHierarchy,
    ImageEncoder,
    MobileStyleGANGenerator,
    RegionSegmenter,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGAN2Generator,
    StyleGenerator,
)

# Loading, components, saving.
pipe = StyleFusionPipeline.from_pretrained("user/repo", dtype=torch.float16)
assert_type(pipe, StyleFusionPipeline)
assert_type(StyleFusionPipeline.from_embedded(), StyleFusionPipeline)
assert_type(pipe.to("cuda"), StyleFusionPipeline)
assert_type(pipe.generator, StyleGenerator)
assert_type(pipe.fusion, FusionHierarchy)
pipe.save_pretrained("folder")
pipe.generator.save_pretrained("folder/generator")
pipe.fusion.save_pretrained("folder/fusion", variant="fp16")

# Models.
generator = StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=16, w_dim=16, mapping_layers=2)
assert_type(generator, StyleGAN2Generator)
assert_type(MobileStyleGANGenerator(32), MobileStyleGANGenerator)
assert_type(generator.to_style(torch.randn(1, 16)), torch.Tensor)
fusion = FusionHierarchy("all*(face, hair)", generator.conv_sizes, generator.rgb_sizes)
assert_type(fusion.fuse({"face": torch.randn(1, 40)}), torch.Tensor)
segmenter = RegionSegmenter(["face", "hair"])
assert_type(segmenter, RegionSegmenter)
encoder = ImageEncoder(num_ws=4)
for model in (generator, fusion, segmenter, encoder):
    model.save_pretrained("y")
assert_type(StyleGAN2Generator.from_pretrained("y"), StyleGAN2Generator)

# Pictures.
own = StyleFusionPipeline(generator, fusion, segmenter=segmenter, encoder=encoder)
out = own(base=1, regions={"hair": [7, 8]}, latent_type="z", output_masks=True)
assert_type(out.images, list[Image.Image])
out.images[0].save("a.png")
assert_type(out.style_codes, torch.Tensor)
assert_type(own(base=1, output_type="np").images, np.ndarray)
assert_type(own(base=1, output_type="pt").images, torch.Tensor)
assert_type(own(base=1, output_type="latent").images, torch.Tensor)

# Walks and inversion.
walk = StyleFusionInterpolationPipeline.from_pipe(own)
assert_type(walk(base=[1, 2], steps=4).frames, list[Image.Image])
inversion = StyleFusionInversionPipeline.from_pipe(own)
found = inversion(Image.new("RGB", (8, 8)), latent_type="w+", num_inference_steps=3)
assert_type(found.codes, Code)
assert_type(found.images, list[Image.Image])
assert_type(found.generator, StyleGenerator | None)

# Compiling, offloading.
own.generator = torch.compile(own.generator)
own.generator.compile()
own.generator.synthesis = torch.compile(own.generator.synthesis)
own.enable_model_cpu_offload()
own.enable_group_offload(torch.device("cuda"), offload_type="leaf_level")

# What must not pass.
own(base=1, output_type="jpeg")  # type: ignore[call-overload]  # pyright: ignore
own(base=1, latent_type="q")  # type: ignore[call-overload]  # pyright: ignore
inversion("a.png", latent_type="z")  # type: ignore[call-overload]  # pyright: ignore
StyleGAN2Generator(resolution="8")  # type: ignore[arg-type]  # pyright: ignore
own(base=1, hair=7)  # type: ignore[call-overload]  # pyright: ignore
anything: Any = own.encoder
