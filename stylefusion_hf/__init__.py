"""StyleFusion for the Hugging Face ecosystem: one latent code per region, fused into one harmonized picture.

Names are imported when they are first used, so that `import stylefusion_hf` itself is instant and needs no torch.
"""

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What users import from here -> where it lives. Saved pipelines record "stylefusion_hf" as the home of components,
# so a name stays even where its file moves; ModelMixin is here since diffusers looks for it in that same module.
_HOMES = {
    "Code": "stylefusion_hf.core.codes",
    "Direction": "stylefusion_hf.core.edits",
    "FeatureLabeller": "stylefusion_hf.models.labeller",
    "FusionHierarchy": "stylefusion_hf.models.fusion.hierarchy",
    "HubSegmenter": "stylefusion_hf.models.hub_segmenter",
    "ImageEncoder": "stylefusion_hf.models.encoder",
    "MobileStyleGANGenerator": "stylefusion_hf.models.mobile_stylegan",
    "ModelMixin": "diffusers",
    "RegionSegmenter": "stylefusion_hf.models.segmenter",
    "RegionTree": "stylefusion_hf.core.region_tree",
    "StyleFusionInterpolationPipeline": "stylefusion_hf.pipelines.interpolate",
    "StyleFusionInversionPipeline": "stylefusion_hf.pipelines.invert",
    "StyleFusionPhotoPipeline": "stylefusion_hf.pipelines.photograph",
    "StyleFusionPipeline": "stylefusion_hf.pipelines.fuse",
    "StyleGAN2Discriminator": "stylefusion_hf.models.discriminator",
    "StyleGAN2Generator": "stylefusion_hf.models.stylegan2",
    "StyleGAN3Generator": "stylefusion_hf.models.stylegan3",
    "StyleGenerator": "stylefusion_hf.models.style_generator",
}

# diffusers' modules import each other in circles, which threads that start at different ends would find half made.
_importing = RLock()

__all__ = [
    "Code",
    "Direction",
    "FeatureLabeller",
    "FusionHierarchy",
    "HubSegmenter",
    "ImageEncoder",
    "MobileStyleGANGenerator",
    "ModelMixin",
    "RegionSegmenter",
    "RegionTree",
    "StyleFusionInterpolationPipeline",
    "StyleFusionInversionPipeline",
    "StyleFusionPhotoPipeline",
    "StyleFusionPipeline",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "StyleGAN3Generator",
    "StyleGenerator",
    "__version__",
]

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from stylefusion_hf.core.codes import Code
    from stylefusion_hf.core.edits import Direction
    from stylefusion_hf.core.region_tree import RegionTree
    from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
    from stylefusion_hf.models.encoder import ImageEncoder
    from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
    from stylefusion_hf.models.hub_segmenter import HubSegmenter
    from stylefusion_hf.models.labeller import FeatureLabeller
    from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator
    from stylefusion_hf.models.segmenter import RegionSegmenter
    from stylefusion_hf.models.style_generator import StyleGenerator
    from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
    from stylefusion_hf.models.stylegan3 import StyleGAN3Generator
    from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
    from stylefusion_hf.pipelines.interpolate import StyleFusionInterpolationPipeline
    from stylefusion_hf.pipelines.invert import StyleFusionInversionPipeline
    from stylefusion_hf.pipelines.photograph import StyleFusionPhotoPipeline


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
