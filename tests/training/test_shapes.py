"""Training with rectangular generators, and with transparency: fusion nets, encoders, generators; what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import (
    ImageEncoder,
    RegionSegmenter,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from stylefusion_hf.core import memory
from stylefusion_hf.core.sizes import nearest_heights
from stylefusion_hf.data.folders import ImageFolder
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges, PortraitJudge
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.imaging.modes import to_picture
from stylefusion_hf.training import encoder, fusion, generator, judges
from tests.tiny import tiny_fusion, tiny_generator

SHAPES = {
    "of three rows": {"resolution": 48, "base_size": [3, 5], "channels": [8] * 5},
    "tall, with alpha": {"resolution": 32, "base_size": [4, 2], "img_channels": 4},
}


@pytest.fixture(scope="module", params=SHAPES)
def base(request, tmp_path_factory):
    """A folder with generator/, segmenter/ and discriminator/ of a shape, and pictures/ like theirs."""
    root = tmp_path_factory.mktemp("base")
    g = tiny_generator(use_noise=False, **SHAPES[request.param])
    channels = g.config.img_channels
    g.save_pretrained(root / "generator")
    torch.manual_seed(1)
    segmenter = RegionSegmenter(regions=["a", "b"], channels=[4, 4], groups=2, img_channels=channels)
    segmenter.save_pretrained(root / "segmenter")
    size = {"resolution": g.config.resolution, "channels": list(g.config.channels), "base_size": list(g.base_size)}
    StyleGAN2Discriminator(**size, img_channels=channels).save_pretrained(root / "discriminator")
    (root / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.RandomState(i).randint(0, 256, (*g.picture_size, channels), np.uint8)
        to_picture(pixels).save(root / "pictures" / f"{i}.png")
    return root


def test_fusion_nets(base, tmp_path):
    g = StyleGAN2Generator.from_pretrained(base, subfolder="generator")
    half = g.config.resolution // 2
    flags = f"--model {base} --output_dir {tmp_path} --pool_size 16 --train_batch_size 4 --hidden_width 8"
    flags += " --hidden_layers 1 --logging_steps 1 --validation_steps 3 --max_train_steps 3 --tree all*(a,b)"
    flags += f" --train_resolution {half} --full_resolution_steps 1 --segmenter_resolution {half}"
    flags += " --spatial_weight 0.1 --outside_weight 1 --features maps,texture --validation_pairs 0 --start_pictures 8"
    fusion.train(fusion.parse_args(flags.split()))
    pipe = StyleFusionPipeline.from_pretrained(tmp_path)
    assert pipe(base=1, regions={"a": 2}, output_masks=True).masks["a"].shape == (1, *g.picture_size)
    height, width = g.size_at(half)  # of the sheet's rows and columns: base, source, each leaf, the global code
    with Image.open(tmp_path / "samples" / "000003.png") as sheet:
        assert sheet.size == (5 * width, 6 * height) and sheet.mode == (
            "RGBA" if g.config.img_channels == 4 else "RGB"
        )


def test_realism_with_a_discriminator_of_the_same_shape(base, tmp_path):
    flags = f"--model {base} --output_dir {tmp_path} --pool_size 16 --train_batch_size 4 --hidden_width 8"
    flags += " --hidden_layers 1 --max_train_steps 1 --tree all*(a,b) --realism_weight 0.1 --validation_pairs 0"
    fusion.train(fusion.parse_args([*flags.split(), "--start_pictures", "8"]))
    assert (tmp_path / "fusion" / "config.json").is_file()


def test_encoder(base, tmp_path):
    g = StyleGAN2Generator.from_pretrained(base, subfolder="generator")
    flags = f"--model {base} --output_dir {tmp_path} --train_data_dir {base / 'pictures'} --train_batch_size 4"
    flags += " --max_train_steps 1 --eval_images 2 --validation_steps 1 --lr_warmup_steps 0"
    encoder.train(encoder.parse_args(flags.split()))
    trained = ImageEncoder.from_pretrained(tmp_path, subfolder="encoder")
    images = torch.zeros(1, g.config.img_channels, *g.picture_size)
    assert trained.encode(images).shape == (1, g.num_ws, g.config.w_dim)
    flags = f"--model {base} --output_dir {tmp_path / 'avatars'} --avatars 4"
    with pytest.raises(ValueError, match="avatars are squares of 3 channels, the generator's pictures"):
        encoder.train(encoder.parse_args(flags.split()))


def test_generator(base, tmp_path):
    g = StyleGAN2Generator.from_pretrained(base, subfolder="generator")
    flags = f"--model {base} --output_dir {tmp_path} --train_batch_size 4 --max_train_steps 1 --validation_steps 1"
    flags += f" --resolution {g.config.resolution} --train_data_dir {base / 'pictures'}"
    generator.train(generator.parse_args(flags.split()))
    trained = StyleGAN2Generator.from_pretrained(tmp_path, subfolder="generator")
    assert trained.picture_size == g.picture_size and trained.config.img_channels == g.config.img_channels


def test_judges_are_for_squares_of_three_channels(base):
    args = judges.parse_args(f"--model {base} --output_dir x --resolution 48 --avatars 4".split())
    args.resolution = StyleGAN2Generator.from_pretrained(base, subfolder="generator").config.resolution
    with pytest.raises(ValueError, match="judges are trained on squares of 3 channels"):
        judges.load_generator(args)


def test_evaluation_needs_judges_that_see_such_pictures(base):
    g = StyleGAN2Generator.from_pretrained(base, subfolder="generator").eval()
    segmenter = RegionSegmenter.from_pretrained(base, subfolder="segmenter").eval()
    pipe = StyleFusionPipeline(g, tiny_fusion(g, "all*(a, b)", num_indicators=12), segmenter)
    assert build_subject(pipe, Judges(segmenter, None, None, base)).ruler.size == g.config.resolution
    square = StyleGAN2Discriminator(resolution=16, channels=[4] * 3, img_channels=g.config.img_channels)
    with pytest.raises(ValueError, match=r"grow from 4 x 4 pixels, this model's grow from [34] x [25]"):
        build_subject(pipe, Judges(segmenter, None, square, base))
    if g.config.img_channels == 4:
        portrait = PortraitJudge(resolution=32, channels=[8] * 4, reduced=4, features=8)
        with pytest.raises(ValueError, match="have 4 channels .*the portrait in .* sees 3"):
            build_subject(pipe, Judges(segmenter, portrait, None, base))


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_maps_nearest_to_16_and_32():
    assert nearest_heights((16, 32), [4, 8, 16, 32, 64]) == [16, 32]
    assert nearest_heights((16, 32), [3, 6, 12, 24, 48]) == [12, 24]
    assert nearest_heights((16, 32), [5, 10, 20, 40]) == [20, 40]
    assert nearest_heights((16, 32), [4, 8, 16]) == [16] and nearest_heights((16,), [4]) == []


def test_memory_goes_by_area():
    assert memory.pool_picture_bytes(32, 2, 1.5) == 1.5 * memory.pool_picture_bytes(32, 2)
    assert memory.reference_bytes(32, 2, 0.5) == 0.5 * memory.reference_bytes(32, 2)
    assert memory.forward_bytes({8: 4, 16: 4}, 16, 1.5) == 1.5 * memory.forward_bytes({8: 4, 16: 4}, 16)


def test_the_measuring_size_is_a_height():
    assert at_measuring_size(torch.zeros(1, 3, 48, 80), 24).shape[2:] == (24, 40)
    assert at_measuring_size(torch.zeros(1, 3, 24, 400), 24).shape[2:] == (24, 400)


def test_folders_of_rectangles(tmp_path):
    to_picture(np.zeros((60, 100, 4), np.uint8)).save(tmp_path / "clear.png")
    assert ImageFolder(tmp_path, (24, 40))[0]["image"].shape == (3, 24, 40)
    assert ImageFolder(tmp_path, (24, 40), crop="none", channels=4)[0]["image"].eq(-1).all()
    with pytest.raises(ValueError, match="are not of the shape of 40 x 20, first"):
        ImageFolder(tmp_path, (20, 40), crop="none")
    with pytest.raises(ValueError, match="smaller than 40 x 64 pixels"):
        ImageFolder(tmp_path, (64, 40))
