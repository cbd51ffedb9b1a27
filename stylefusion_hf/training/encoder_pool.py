"""The pool of an encoder training: samples rendered once, whose codes are drawn again from the seed when needed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylefusion_hf.core.code_files import load_codes
from stylefusion_hf.core.codes import check_shapes
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.core.tensor_files import write_tensors
from stylefusion_hf.models.loading import weights_sha256
from stylefusion_hf.models.sampling import draw_rows
from stylefusion_hf.models.style_generator import StyleGenerator

CODES = "codes.safetensors"
PART = 64  # samples drawn together and stored in one file


class SamplePool:
    """N samples of a generator.

    Attributes:
        codes: (N, num_ws, w_dim) float32.
        images: (N, C, H, W) uint8, on the CPU.
    """

    def __init__(self, codes: Tensor, images: Tensor):
        self.codes, self.images = codes, images

    def __len__(self) -> int:
        return len(self.codes)

    def __add__(self, other: SamplePool) -> SamplePool:
        return SamplePool(torch.cat([self.codes, other.codes]), torch.cat([self.images, other.images]))

    def draw(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return codes and pictures (count, C, H, W) in [-1, 1] of random samples, on the codes' device."""
        index = torch.randint(len(self), (count,), generator=draw)
        codes = self.codes[index.to(self.codes.device)]
        return codes, self.images[index].to(codes).div(127.5).sub(1)

    @classmethod
    def read(cls, folder: str | Path, g: StyleGenerator, size: int) -> SamplePool:
        """Read samples of a folder: pictures, there or in images/, and codes.safetensors with each one's code.

        Args:
            g: the generator that drew them; its codes have the shapes of those in the file, w or w+.
            size: height that the pictures are averaged to.

        Raises:
            OSError: the folder, a picture or the file of codes is missing or damaged.
            ValueError: a picture without a code, or codes of another generator; names it.
        """
        from stylefusion_hf.data.folders import ImageFolder

        pictures = Path(folder, "images")
        dataset = ImageFolder(
            pictures if pictures.is_dir() else folder, g.size_at(size), crop="none", channels=g.config.img_channels
        )
        known = load_codes(Path(folder, CODES))
        names = [Path(file).stem for file in dataset.paths]
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"{Path(folder, CODES)} has no code of the picture {missing[0]}")
        rows = [known[name] for name in names]
        for name, code in zip(names, rows, strict=True):
            if code.space not in ("w", "w+") or len(code) != 1:
                raise ValueError(f"{Path(folder, CODES)}: {name} is not one code in w or w+")
            check_shapes(g, {f"{Path(folder, CODES)}: {name}": [code]})
        codes = [code.tensor[:, None].expand(-1, g.num_ws, -1) if code.space == "w" else code.tensor for code in rows]
        pixels = [dataset[k]["image"].add(1).mul(127.5).round().to(torch.uint8) for k in range(len(dataset))]
        return cls(torch.cat(codes).to(g.w_avg), torch.stack(pixels))

    @classmethod
    @torch.no_grad()
    def render(
        cls,
        g: StyleGenerator,
        count: int,
        folder: Path,
        *,
        seed: int,
        min_psi: float,
        mixed_share: float,
        up_to: int | None = None,
        batch: int = 16,
    ) -> SamplePool:
        """Draw and render samples; files of `folder` that hold the same ones are read instead.

        Args:
            folder: gets a file per `PART` samples, so that an interrupted rendering continues.
            min_psi, mixed_share: as in `draw_rows`.
            up_to: height of the pictures; None for the full size.
            batch: how many to render at once.
        """
        drawn = {"seed": seed, "min_psi": min_psi, "mixed_share": mixed_share, "height": up_to}
        about = {"generator": weights_sha256(g)} | {name: str(value) for name, value in drawn.items()}
        folder.mkdir(parents=True, exist_ok=True)
        codes, images = [], []
        for k in tqdm(range(-(-count // PART)), desc="pool", leave=False):
            rows = draw_rows(g, PART, step_generator(seed, k, purpose=3), min_psi, mixed_share)
            file = folder / f"{k:06d}.safetensors"
            pixels = read_part(file, about)
            if pixels is None:
                parts = [g.synthesis(g.to_style(r), noise_mode="none", up_to=up_to) for r in rows.split(batch)]
                pixels = torch.cat(parts).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu().contiguous()
                write_tensors(file, {"images": pixels}, about)
            codes.append(rows)
            images.append(pixels)
        return cls(torch.cat(codes)[:count], torch.cat(images)[:count])


def read_part(file: Path, about: dict[str, str]) -> Tensor | None:
    """Return the pictures in a file of the pool, or None if it is missing, damaged, or of other samples."""
    try:
        with safe_open(file, "pt") as opened:
            if opened.metadata() != about:
                return None
            return opened.get_tensor("images")
    except (OSError, SafetensorError):
        return None
