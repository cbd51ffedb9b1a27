"""Label samples of a face generator with a face parser, as a data set for `stylefusion train segmenter`.

    pip install openvino
    python -m benchmarks.face_labels --model faces --parser bisenetv2-celebamaskhq-448.tflite --out labelled

The parser is a tool: a tflite file with CelebAMask-HQ's 19 classes, (1, H, W, 3) RGB in [-1, 1] -> (1, H, W) class
ids. Its classes become the regions of the tree `ffhq` by the region map `face`. Pictures are drawn with psi uniform in
`--psi`, in an order fixed by `--seed`; if interrupted, the same command continues. The folder has the layout of
`stylefusion data avatars`: images/, labels/ and dataset.json; codes.safetensors has the code of each picture, for
`stylefusion train encoder --sample_dir`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.core.code_files import save_codes
from stylefusion_hf.core.codes import Code
from stylefusion_hf.core.files import save_image, write_json
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.region_mapping import RegionMap
from stylefusion_hf.imaging.images import open_image, pixels_to_tensor

CLASSES = [
    "background",
    "skin",
    "l_brow",
    "r_brow",
    "l_eye",
    "r_eye",
    "eye_g",
    "l_ear",
    "r_ear",
    "ear_r",
    "nose",
    "mouth",
    "u_lip",
    "l_lip",
    "neck",
    "neck_l",
    "cloth",
    "hair",
    "hat",
]
REGIONS = ("bg", "clothes", "skin", "mouth", "eyes", "hair")


class FaceParser:
    """Region maps of pictures, by a tflite face parser in OpenVINO."""

    def __init__(self, path: str | Path):
        import openvino

        core = openvino.Core()
        self.network = core.compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
        self.size = int(self.network.input(0).shape[1])
        classes = RegionMap.of("face").classes(dict(enumerate(CLASSES)))
        self.region_of_class = torch.zeros(len(CLASSES), dtype=torch.long)
        for region, numbers in classes.items():
            self.region_of_class[numbers] = REGIONS.index(region)

    def labels(self, image: Tensor, size: int) -> Tensor:
        """Region numbers (size, size) of one picture (3, H, W) in [-1, 1]: at each pixel the most frequent region."""
        x = F.interpolate(image[None], size=(self.size,) * 2, mode="bilinear", antialias=True).clamp(-1, 1)
        ids = self.network(x.permute(0, 2, 3, 1).contiguous().numpy())[0]
        regions = self.region_of_class[torch.from_numpy(np.asarray(ids)).long().view(self.size, self.size)]
        shares = F.one_hot(regions, len(REGIONS)).permute(2, 0, 1)[None].float()
        return F.interpolate(shares, size=(size, size), mode="bilinear", antialias=True)[0].argmax(0)


def palette() -> list[int]:
    """Colors of the regions in the label pictures."""
    colors = [(60, 60, 60), (90, 160, 90), (230, 180, 150), (200, 40, 60), (60, 110, 220), (150, 100, 40)]
    return [value for color in colors for value in color]


def sample_code(generator, index: int, seed: int, low: float, high: float) -> Tensor:
    """Sample `index`: its code in w, (1, w_dim)."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + index)
    z = torch.randn(1, generator.config.z_dim, generator=draw)
    psi = low + (high - low) * float(torch.rand(1, generator=draw))
    w = generator.mapping(z)
    return generator.w_avg + psi * (w - generator.w_avg)


def save_labels(path: Path, labels: Tensor) -> None:
    picture = Image.fromarray(labels.byte().numpy(), "P")
    picture.putpalette(palette())
    save_image(picture, path)


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a converted face generator: folder, Hub id or name")
    p.add_argument("--parser", required=True, help="the parser's .tflite file")
    p.add_argument("--out", required=True, type=Path, help="folder of the data set")
    p.add_argument("--count", type=int, default=3000)
    p.add_argument("--size", type=int, default=256, help="side of pictures and labels in pixels")
    p.add_argument("--psi", type=float, nargs=2, default=(0.5, 1.0), metavar=("LOW", "HIGH"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--photographs", type=Path, help="label this folder of `stylefusion align` in place of samples")
    args = p.parse_args()
    parser = FaceParser(args.parser)
    for name in ("images", "labels"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    photographs = sorted(args.photographs.glob("*.png")) if args.photographs else []
    if args.photographs and not photographs:
        raise SystemExit(f"--photographs {args.photographs} holds no .png files: `stylefusion align` writes them")
    generator = None if photographs else StyleFusionPipeline.from_pretrained(args.model).generator
    count = len(photographs) or args.count
    about = {"regions": list(REGIONS), "size": args.size, "seed": args.seed, "psi": list(args.psi)}
    described = args.out / "dataset.json"
    if described.exists() and any(read_json(described).get(key) != value for key, value in about.items()):
        raise SystemExit(f"{args.out} has another data set: {read_json(described)}; give another --out")
    write_json(described, {**about, "count": count, "license": "research and other non-commercial use"})
    for index in tqdm(range(count)):
        name = f"{index:06d}.png"
        if (args.out / "labels" / name).exists():
            continue
        if photographs:
            image = pixels_to_tensor(open_image(photographs[index]))
        else:
            code = sample_code(generator, index, args.seed, *args.psi)
            image = generator.synthesis(generator.to_style(code))[0]
        small = F.interpolate(image[None], size=(args.size,) * 2, mode="bilinear", antialias=True)[0]
        pixels = ((small.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        save_image(Image.fromarray(pixels), args.out / "images" / name)
        save_labels(args.out / "labels" / name, parser.labels(image, args.size))
    if generator is not None:
        codes = (Code(sample_code(generator, index, args.seed, *args.psi), "w") for index in range(count))
        save_codes(args.out / "codes.safetensors", {f"{index:06d}": code for index, code in enumerate(codes)})


if __name__ == "__main__":
    main()
