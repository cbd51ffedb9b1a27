"""A tiny pipeline whose segmenter knows its map beforehand: columns of known regions in every picture."""

from types import SimpleNamespace

import torch

from stylefusion_hf import StyleFusionPipeline
from tests.tiny import RESOLUTION, tiny_fusion, tiny_generator

TREE = "all*(left*(a, b), right)"
COLUMNS = {"a": 12, "b": 12, "right": 8}


class PlantedSegmenter(torch.nn.Module):
    """Columns 0 to 11 are a, 12 to 23 b, 24 to 31 right; how surely depends on the pictures: there is a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(regions=list(COLUMNS))

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        column = torch.arange(3).repeat_interleave(torch.tensor(list(COLUMNS.values())))
        planted = torch.nn.functional.one_hot(column).T[:, None].expand(-1, RESOLUTION, -1)
        return 4 * planted + images


class JudgingSegmenter(PlantedSegmenter):
    """The planted map with a border that moves with the picture, and features."""

    def segment(self, images: torch.Tensor, return_features: bool = False):
        logits = super().segment(images)
        return (logits, torch.nn.functional.avg_pool2d(images, 4)) if return_features else logits


def planted_pipeline() -> StyleFusionPipeline:
    generator = tiny_generator()
    return StyleFusionPipeline(generator, tiny_fusion(generator, TREE), PlantedSegmenter())
