"""How close generated pictures come to held-out renders: KID, precision and recall.

    python -m stylefusion_hf.evaluation.realism --judge FOLDER [--model FOLDER] [--count 2000]

KID is the unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al., arXiv
1801.01401); precision and recall use the k-nearest-neighbour manifolds of Kynkaanniemi et al. (arXiv 1904.06991). The
usual Inception features know photographs and cannot be had without a download, so the features are those of a
segmenter of the same domain, pooled to means and deviations per channel: figures compare models of this domain with
one another and with the two lines printed beside them (other renders, and blurred renders), not with published KIDs.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from stylefusion_hf.evaluation.report import report

# --- Statistics on features (N, D) -----------------------------------------------------------------------------------


def kid(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the cubic polynomial kernel; may be slightly negative for equal distributions."""
    d = x.shape[1]
    kxx, kyy, kxy = ((a @ b.t() / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    own_x, own_y = (kxx.sum() - kxx.diag().sum()) / (n * (n - 1)), (kyy.sum() - kyy.diag().sum()) / (m * (m - 1))
    return float(own_x + own_y - 2 * kxy.mean())


def coverage(support: Tensor, points: Tensor, k: int = 3) -> float:
    """Share of `points` that lie within the k-th nearest-neighbour distance of some point of `support`.

    `coverage(real, fake)` is precision, `coverage(fake, real)` recall.
    """
    radius = torch.cdist(support, support).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
    return float((torch.cdist(points, support) <= radius).any(dim=1).float().mean())


# --- Features --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled_features(judge, images: Tensor, batch: int = 64) -> Tensor:
    """Channel means and deviations of the judge's lowest level: images (N, 3, H, W) in [-1, 1] -> (N, 2 C)."""
    out = []
    for x in images.split(batch):
        _, f = judge.segment(x.clamp(-1, 1), return_features=True)
        out.append(torch.cat([f.mean(dim=(2, 3)), f.std(dim=(2, 3))], dim=1).float().cpu())
    return torch.cat(out)


def compare(judge, real: Tensor, fake: Tensor) -> dict[str, float]:
    """KID (times 1000), precision and recall of fake against real images, both (N, 3, H, W) in [-1, 1]."""
    x, y = pooled_features(judge, real), pooled_features(judge, fake)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, y = (x - mean) / std, (y - mean) / std
    return {"KID x 1000": 1000 * kid(x, y), "precision": coverage(x, y), "recall": coverage(y, x)}


@torch.no_grad()
def sample_images(g, count: int, first_seed: int, psi: float, batch: int = 64) -> Tensor:
    """Plain samples of consecutive seeds, (count, 3, H, W)."""
    from stylefusion_hf.latents import seeds_to_z

    images = []
    for start in tqdm(range(0, count, batch), desc="samples"):
        z = seeds_to_z(range(first_seed + start, first_seed + min(start + batch, count)), g.config.z_dim)
        images.append(g.synthesis(g.to_style(g.truncate(g.mapping(z.to(g.w_avg)), psi))).clamp(-1, 1))
    return torch.cat(images)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description="KID, precision and recall of a generator against held-out avatar renders."
    )
    p.add_argument("--model", help="folder or Hub id of a pipeline; the embedded model if left out")
    p.add_argument("--judge", required=True, help="folder of the segmenter whose features judge")
    p.add_argument("--count", type=int, default=2000, help="pictures on each side")
    p.add_argument("--json", help="also write the figures to this file")
    args = p.parse_args(argv)
    from stylefusion_hf import RegionSegmenter, StyleFusionPipeline
    from stylefusion_hf.data.avatars import render_arrays

    pipe = StyleFusionPipeline.from_pretrained(args.model) if args.model else StyleFusionPipeline.from_embedded()
    judge = RegionSegmenter.from_pretrained(args.judge).eval()
    arrays, _ = render_arrays(2 * args.count, pipe.generator.config.resolution, start=2_000_000)
    renders = torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    real, more = renders.split(args.count)
    half = F.interpolate(F.avg_pool2d(more, 2), scale_factor=2, mode="bilinear", align_corners=False)
    rows = {
        "samples, psi 1": sample_images(pipe.generator, args.count, 1_000_000, 1.0),
        "samples, psi 0.7": sample_images(pipe.generator, args.count, 1_000_000, 0.7),
        "other renders": more,
        "renders at half the resolution": half,
    }
    result = {name: compare(judge, real, images) for name, images in rows.items()}
    report("pictures", result, args.json)


if __name__ == "__main__":
    main()
