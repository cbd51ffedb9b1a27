"""A planted pipeline with its judges, and tiny models and judges in folders."""

from pathlib import Path

import pytest
import torch

from stylefusion_hf import StyleGAN2Discriminator
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges
from tests.planted import JudgingSegmenter, planted_pipeline
from tests.tiny import RESOLUTION, tiny_pipeline, tiny_segmenter

TREE = "all*(face*(mouth, skin), hair)"  # of the model in a folder


@pytest.fixture(scope="package")
def subject():
    torch.manual_seed(0)
    d = StyleGAN2Discriminator(RESOLUTION, channels=[8] * 4, mbstd_channels=0).eval()
    judges = Judges(JudgingSegmenter(), None, d, Path("planted"))
    return build_subject(planted_pipeline(), judges, batch=5)


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny model and tiny judges as folders."""
    model, judges = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("judges")
    tiny_pipeline(TREE, segmenter=True).save_pretrained(model)
    tiny_segmenter(TREE, seed=1).save_pretrained(judges / "segmenter")
    return str(model), str(judges)
