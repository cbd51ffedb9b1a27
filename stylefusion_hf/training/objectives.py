"""What a fused image should look like: the first objective for fusion nets.

StyleFusion's authors published no training code. This is a reconstruction (see docs/train.md): every fused image gets
a TARGET, put together from the plain images of its input codes, region by region, each moved into the pose of the
image whose code is the common one. Regions are painted back to front; where nothing is known the target has no say.

All functions are pure and batched. Label maps are (B, H, W) integers, images (B, 3, H, W) in [-1, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.alignment import inside, pose_between, warp

# --- The target ------------------------------------------------------------------------------------------------------


def compose_target(
    images: Tensor,
    labels: Tensor,
    source_of_region: Tensor,
    pose_source: Tensor,
    pose_regions: list[int],
    static_regions: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The image that a fused code should give, put together from its sources' images.

    Args:
        images: (B, K, 3, H, W), the plain images of a sample's K codes.
        labels: (B, K, H, W), their label maps; region ids count from back to front.
        source_of_region: (B, R), which of the K codes owns each region.
        pose_source: (B,), which of the K codes is the common one.
        pose_regions: regions whose centroids tell the pose.
        static_regions: regions that do not move with the pose, such as the background.

    Returns:
        target (B, 3, H, W); owner (B, H, W), the region each pixel was painted as, -1 where its colour is not known;
        layout (B, H, W), the region expected at each pixel, -1 where that is not known either. It knows more than
        `owner`: a region of the pose's image that its own source hides there (skin under that image's hair) goes on
        behind what hid it.
    """
    b, k, c, h, w = images.shape
    r = source_of_region.shape[1]
    rows = torch.arange(b, device=images.device)
    pose_labels = labels[rows, pose_source]
    theta = pose_between(pose_labels.repeat_interleave(k, 0), labels.flatten(0, 1), pose_regions, r).to(
        images
    )  # (B * K, 2, 3)
    still = torch.eye(2, 3, device=images.device, dtype=images.dtype)
    own = F.one_hot(pose_source, k).flatten().bool()
    theta = torch.where(own[:, None, None], still, theta)  # exactly, not within rounding
    moved_images = warp(images.flatten(0, 1), theta).unflatten(0, (b, k))
    moved_labels = (
        warp(labels.flatten(0, 1)[:, None].to(images.dtype), theta, "nearest").long()[:, 0].unflatten(0, (b, k))
    )
    known = inside(theta, h, w).unflatten(0, (b, k))
    target = torch.zeros(b, c, h, w, device=images.device, dtype=images.dtype)
    owner = torch.full((b, h, w), -1, device=images.device)
    layout = owner.clone()
    for region in range(r):  # the painter's algorithm needs its order
        source = source_of_region[:, region]
        if region in static_regions:
            seen, picture, within = labels[rows, source], images[rows, source], True
        else:
            seen, picture, within = moved_labels[rows, source], moved_images[rows, source], known[rows, source]
        claim = (seen == region) & within
        hidden = (pose_labels == region) & ((seen > region) | ~torch.as_tensor(within))
        target = torch.where(claim[:, None], picture, target)
        owner = torch.where(claim, region, torch.where(hidden, -1, owner))
        layout = torch.where(claim | hidden, region, layout)
    return target, owner, layout


# --- Losses ----------------------------------------------------------------------------------------------------------


def masked_distance(difference: Tensor, mask: Tensor, levels: int = 3) -> Tensor:
    """Sum of |difference| under the mask per sample, (B,), over images at full, half and quarter size.

    The smaller sizes forgive a shift of a pixel or two, which is what the estimated pose is good for.
    """
    x, total = difference * mask[:, None], torch.zeros_like(difference[:, 0, 0, 0])
    for level in range(levels):
        total = total + x.abs().sum(dim=(1, 2, 3)) * 4**level / levels
        if level < levels - 1:
            x = F.avg_pool2d(x, 2)
    return total


def locality_and_transfer(
    image: Tensor,
    target: Tensor,
    owner: Tensor,
    swapped: Tensor,
    reference: Tensor,
    other: Tensor,
    floor: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """How far a fused image is from its target, where codes were swapped and where they were not.

    Args:
        image, target: (B, 3, H, W).
        owner: (B, H, W) from `compose_target`.
        swapped: (B, R), true for regions that differ from the image `reference`, whose pose and looks are the base.
        reference: plain image of the common code: transfer 1 means "as if nothing had been swapped".
        other: plain image of a swapped code: locality 1 means "as if the whole code had been swapped".
        floor: smallest mean difference that counts as one, so that look-alikes do not weigh infinitely.

    Returns:
        locality (B,), transfer (B,); 0 where a sample has no such pixels.
    """
    known = owner >= 0
    is_swapped = swapped.gather(1, owner.clamp_min(0).flatten(1)).view_as(owner) & known
    kept = known & ~is_swapped

    def ratio(mask: Tensor, baseline: Tensor) -> Tensor:
        m = mask.to(image.dtype)
        pixels = m.sum(dim=(1, 2)) * image.shape[1]
        scale = masked_distance(baseline, m).clamp_min(1e-6) + floor * pixels
        return masked_distance(image - target, m) / scale * (pixels > 0)

    return ratio(kept, other - reference), ratio(is_swapped, reference - target)


def layout_loss(logits: Tensor, layout: Tensor, pose_labels: Tensor) -> Tensor:
    """Cross entropy (B,) of the fused image's segmentation with the expected layout.

    Args:
        logits: (B, R, H, W) of the fused image.
        layout: (B, H, W) from `compose_target`. Where it is -1, a region went that `pose_labels` had there: the loss
            then asks only that it be gone, whatever shows instead.
        pose_labels: (B, H, W) of the plain image of the common code.
    """
    log_p = logits.float().log_softmax(dim=1)
    hit = -log_p.gather(1, layout.clamp_min(0)[:, None]).squeeze(1)
    p_gone = log_p.gather(1, pose_labels[:, None]).squeeze(1).exp()
    miss = -torch.log1p(-p_gone.clamp_max(0.999))
    return torch.where(layout >= 0, hit, miss).mean(dim=(1, 2))
