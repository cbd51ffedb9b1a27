"""What a fusion training is made of: new nets, the frozen networks, and the objective that the flags describe."""

import argparse
import logging
import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training.common import step_generator
from stylefusion_hf.training.criterion import TERMS, Criterion
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.sampling import draw_codes
from stylefusion_hf.training.views import Eye, Pool

logger = logging.getLogger("stylefusion_hf")


def build_fusion(args: argparse.Namespace, tree: RegionTree, g: StyleGenerator) -> FusionHierarchy:
    """New nets, small ones that start as constant gates."""
    layers = sum(resolution <= args.common_resolution for resolution in g.conv_resolutions)
    rgbs = sum(resolution <= args.common_resolution for resolution in g.rgb_resolutions)
    own = args.rgb_indicators
    return FusionHierarchy(
        tree=tree.to_dict(),
        conv_sizes=g.conv_sizes,
        rgb_sizes=g.rgb_sizes,
        padded_width=max(g.conv_sizes + g.rgb_sizes),
        hidden_width=args.hidden_width,
        hidden_layers=args.hidden_layers,
        num_indicators=len(g.conv_sizes) + (len(g.rgb_sizes) if own else 1),
        indicator_repeats=1,
        shared_indicators=not own,
        common_conv_layers=layers,
        common_rgb_layers=rgbs,
        lr_multiplier=1.0,
        pooling="mean",
        final_activation="linear",
        gate_bias=True,
        gate_product=args.gate_product,
        gate_novelty=args.gate_novelty,
        standardise=args.standardise,
    )


@torch.no_grad()
def start_gates(fusion: FusionHierarchy, energies: Tensor, regions: list[str], floor: float = 0.02) -> None:
    """Constant gates that give every style channel to the child whose regions it drives most.

    energies: (R, S) from `features.channel_energies`, rows as `regions`. Alignment starts nearly closed: the coarse
    layers carry looks as well as pose, and what is half open loses looks before it finds the pose. Where gates know
    of novelty, it starts more open for a child in company, for then it is the pose that is common.
    """
    tree, row = fusion.tree, {name: i for i, name in enumerate(regions)}
    for name in tree.fused:
        first, second = (
            energies[[row[leaf] for leaf in tree.subtree(child) if leaf in row]].sum(0).sqrt()
            for child in tree.children(name)
        )
        gate = second / (first + second).clamp_min(1e-12)
        align = fusion.net(name).blender_common
        fusion.set_constant_gates(
            name, segments=gate.clamp(floor, 1 - floor), common=0.1 if align.gate_novelty is None else 0.02
        )
        if align.gate_novelty is not None:
            torch.nn.init.constant_(align.gate_novelty, 4.0)


def load_frozen(
    args: argparse.Namespace, accelerator: Accelerator
) -> tuple[StyleGenerator, StyleGAN2Discriminator | None]:
    """Generator and (if the realism term wants it) discriminator of the given folder, frozen."""
    if not args.pretrained_model_name_or_path:
        raise ValueError("--model is missing: a folder or Hub id that holds generator/")
    where = {"revision": args.revision, "variant": args.variant}

    def load(cls: Any, name: str) -> Any:
        return cls.from_pretrained(args.pretrained_model_name_or_path, subfolder=name, **where)

    def frozen(model: Any) -> Any:
        return model.eval().requires_grad_(False).to(accelerator.device)

    g = frozen(load(StyleGenerator, "generator"))
    if not args.realism_weight:
        return g, None
    return g, frozen(without_batch_statistics(load(StyleGAN2Discriminator, "discriminator")))


def without_batch_statistics(d: StyleGAN2Discriminator) -> StyleGAN2Discriminator:
    """The same discriminator, its minibatch-deviation channels taken to be 0: a picture's logit must not depend on its
    neighbours'.
    """
    extra = d.config.mbstd_channels
    if not extra:
        return d
    config = {k: v for k, v in d.config.items() if not k.startswith("_")} | {"mbstd_channels": 0}
    plain = StyleGAN2Discriminator(**config)
    state = d.state_dict()
    state["conv.weight"] = state["conv.weight"][:, :-extra]
    # Equalised layers divide by the root of their inputs' number, which is smaller now.
    state["conv.weight"] = state["conv.weight"] * math.sqrt((d.conv.weight.shape[1] - extra) / d.conv.weight.shape[1])
    plain.load_state_dict(state)
    return plain


def check_objective(args: argparse.Namespace) -> None:
    """ValueError for flags of the objective that make no sense, before anything is computed."""
    weights = {name: getattr(args, f"{name}_weight") for name in TERMS}
    if not any(weights.values()):
        raise ValueError("every term's weight is 0: there is nothing to train for")
    if bad := [name for name, w in weights.items() if w < 0]:
        raise ValueError(f"--{bad[0]}_weight must not be negative, got {weights[bad[0]]}")
    if not 0 <= args.min_psi <= 1 or not 0 <= args.mixed_share <= 1:
        raise ValueError(f"--min_psi and --mixed_share are from 0 to 1, got {args.min_psi} and {args.mixed_share}")
    if args.pool_size is not None and args.pool_size < 8:
        raise ValueError(f"--pool_size must be at least 8, got {args.pool_size}")
    if args.common_resolution < 4:
        raise ValueError(f"--common_resolution must be at least 4, the smallest layer, got {args.common_resolution}")
    if args.deficit < 0:
        raise ValueError(f"--deficit must not be negative, got {args.deficit}: it would favour what lacks least")
    if args.discriminator_learning_rate and not args.realism_weight:
        raise ValueError("--discriminator_learning_rate fine-tunes the realism term: give --realism_weight too")
    if args.outside_power < 1:
        raise ValueError(f"--outside_power must be at least 1, got {args.outside_power}")
    if args.temperature <= 0:
        raise ValueError(f"--temperature must be positive, got {args.temperature}")


def pool_size(args: argparse.Namespace, resolution: int, regions: int) -> int:
    """--pool_size; if left out 3072, or as many pictures as 8 GiB hold (512 of six regions at 1024 pixels)."""
    picture = resolution**2 * (3 + 2 * regions + 1)  # uint8 image, half-precision probabilities, labels
    return args.pool_size or max(8, min(3072, 2**33 // picture))


def build_criterion(args: argparse.Namespace, tree: RegionTree, g, segmenter, discriminator) -> Criterion:
    """The objective that the flags describe, with its pool."""
    weights = {name: getattr(args, f"{name}_weight") for name in TERMS}
    known = list(segmenter.config.regions)
    roles = Roles.of(tree, known, args.pose_regions, args.static_regions)
    if args.layout_weight and not roles.groups:
        logger.info("--layout_weight plays no part: the tree %s has no fused inner node below the root", tree)
        weights["layout"] = 0.0
        if not any(weights.values()):
            raise ValueError("every other term's weight is 0: there is nothing to train for")
    features = [name.strip() for name in args.features.split(",") if name.strip()]
    eye = Eye(g, segmenter, [known.index(n) for n in roles.names], features, keep_maps=args.spatial_weight > 0)
    size = pool_size(args, g.config.resolution, len(roles.names))
    codes = draw_codes(g, size, step_generator(args.seed, 0, purpose=2), args.min_psi, args.mixed_share)
    eye.calibrate(codes[:256])
    pool = Pool.of(eye, codes)
    settings = {"deficit": args.deficit, "temperature": args.temperature, "power": args.outside_power}
    return Criterion(tree, roles, eye, pool, weights, args.reference, discriminator=discriminator, **settings)
