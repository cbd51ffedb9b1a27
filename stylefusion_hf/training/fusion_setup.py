"""The parts of a fusion training: new nets, the frozen networks, and the objective that the flags describe."""

import argparse
import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.memory import (
    MemoryPlan,
    backward_bytes,
    forward_bytes,
    memory_budget,
    plan_pool,
    plan_step,
    reference_bytes,
)
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges, load_judges
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.low_rank import merge_layers
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.regions.distillation import distil
from stylefusion_hf.regions.working_size import LARGEST
from stylefusion_hf.training.choices import TERMS
from stylefusion_hf.training.common import save_model
from stylefusion_hf.training.criterion import Criterion
from stylefusion_hf.training.fusion_flags import features_of
from stylefusion_hf.training.networks import FrozenNetworks, training_resolution
from stylefusion_hf.training.pool import RenderedPool
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import Sample
from stylefusion_hf.training.start_gates import driving_layers, gradient_batches, measure_energies, start_gates

logger = logging.getLogger("stylefusion_hf")
POOL_OF_PREVIEWS = 512  # pictures in the pool, on a CPU, of generators above LARGEST px, if the flags do not say
LEAST_AGREEMENT = 0.8  # IoU of a segmenter on training pictures with itself on full ones, below which one is distilled


def build_fusion(args: argparse.Namespace, tree: RegionTree, g: StyleGenerator) -> FusionHierarchy:
    """Return new nets that start as constant gates; those of layers beyond --train_resolution stay constant."""
    resolution, own = training_resolution(args.train_resolution, g.picture_sizes), args.rgb_indicators
    whole = resolution == g.config.resolution and args.max_train_steps > 0
    convs, rgbs = driving_layers(g, resolution) if args.max_train_steps else (0, 0)  # no MLP without training

    def layers(resolutions: list[int], limit: int) -> int:
        return sum(r <= limit for r in resolutions)

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
        common_conv_layers=layers(g.conv_resolutions, args.common_resolution),
        common_rgb_layers=layers(g.rgb_resolutions, args.common_resolution),
        lr_multiplier=1.0,
        pooling=args.pooling,
        final_activation=args.final_activation,
        gate_bias=True,
        gate_product=args.gate_product,
        gate_novelty=args.gate_novelty,
        standardise=args.standardise,
        adaptive_conv_layers=None if whole else convs,
        adaptive_rgb_layers=None if whole else rgbs,
        context_width=args.context_width,
    )


def load_initial_fusion(args: argparse.Namespace) -> FusionHierarchy | None:
    """Return the nets of --initial_fusion, with full layers; None without the flag."""
    if not args.initial_fusion:
        return None
    return merge_layers(FusionHierarchy.from_pretrained(args.initial_fusion, subfolder="fusion").float())


def check_initial_fusion(args: argparse.Namespace, found: FusionHierarchy, expected: FusionHierarchy) -> None:
    """Raise a ValueError unless the tree, layers and inputs of the nets of --initial_fusion are the expected ones."""
    known = {**expected.config} | {"tree": expected.tree.to_dict()}
    own = {**found.config} | {"tree": found.tree.to_dict()}
    if differ := [k for k in known if not k.startswith("_") and known[k] != own.get(k)]:
        what = "; ".join(
            f"{name} is {shown(str(own.get(name)))}, not {shown(str(known[name]))}" for name in differ[:3]
        )
        raise ValueError(f"--initial_fusion {args.initial_fusion} does not fit the flags and --model: {what}")


def load_frozen(
    args: argparse.Namespace, accelerator: Accelerator
) -> tuple[StyleGenerator, StyleGAN2Discriminator | None]:
    """Return the frozen generator and, if the realism term needs it, the frozen discriminator in --model."""
    if not args.pretrained_model_name_or_path:
        raise ValueError("--model is missing: a folder or Hub id that holds generator/")
    where = {"revision": args.revision, "variant": args.variant}

    def load(cls: Any, name: str) -> Any:
        return cls.from_pretrained(args.pretrained_model_name_or_path, subfolder=name, **where)

    def frozen(model: Any) -> Any:
        return model.eval().requires_grad_(False).to(accelerator.device)

    g = frozen(load(StyleGenerator, "generator"))
    check_viewable(g.config.img_channels)  # training draws sheets
    if not args.realism_weight:
        return g, None
    return g, frozen(without_batch_statistics(load(StyleGAN2Discriminator, "discriminator")))


def fit_preview(args: argparse.Namespace, g: StyleGenerator) -> None:
    """Fit a preview head to the generator if it has no pictures of the training resolution.

    The head is saved with the generator. ValueError for a resolution of which the generator has no features.
    """
    sizes = sorted({*g.feature_sizes, *g.picture_sizes})
    wanted = training_resolution(args.train_resolution, sizes)
    if wanted not in g.picture_sizes:
        quality = g.fit_preview(wanted, seed=args.seed)
        logger.info("a fitted head makes pictures of %d px: %.1f dB from downscaled full ones", wanted, quality)


def without_batch_statistics(d: StyleGAN2Discriminator) -> StyleGAN2Discriminator:
    """Return the discriminator without minibatch deviation, so that a logit depends on one picture alone."""
    extra = d.config.mbstd_channels
    if not extra:
        return d
    config = own_config(d) | {"mbstd_channels": 0}
    plain = StyleGAN2Discriminator(**config)
    state = d.state_dict()
    state["conv.weight"] = state["conv.weight"][:, :-extra]
    # Equalized layers divide by the root of their number of inputs, which is smaller now.
    state["conv.weight"] = state["conv.weight"] * math.sqrt((d.conv.weight.shape[1] - extra) / d.conv.weight.shape[1])
    plain.load_state_dict(state)
    return plain


def build_criterion(
    args: argparse.Namespace,
    tree: RegionTree,
    g: StyleGenerator,
    segmenter: Any,
    discriminator: StyleGAN2Discriminator | None,
    resolution: int | None = None,
    precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    dtype: torch.dtype | None = None,
) -> Criterion:
    """Return the objective of the flags, with its pool, at `resolution` or by default at --train_resolution."""
    weights = {name: getattr(args, f"{name}_weight") for name in TERMS}
    known = list(segmenter.config.regions)
    roles = Roles.of(tree, known, args.pose_regions, args.static_regions)
    if args.layout_weight and not roles.groups:
        logger.info("--layout_weight has no effect: the tree %s has no fused inner node below the root", tree)
        weights["layout"] = 0.0
        if not any(weights.values()):
            raise ValueError("every other term's weight is 0: there is nothing to train for")
    trained = training_resolution(args.train_resolution, g.picture_sizes)
    size, count = resolution or trained, len(roles.names)
    plan = plan_memory(args, g, size, count, args.pool_size if size == trained else None)
    networks = FrozenNetworks(
        g,
        segmenter,
        order=[known.index(n) for n in roles.names],
        resolution=size,
        features=features_of(args),
        keep_maps=args.spatial_weight > 0,
        batch=plan.render,
        precision=precision,
        dtype=dtype,
    )
    codes = draw_codes(g, plan.pool_size, step_generator(args.seed, 0, purpose=2), args.min_psi, args.mixed_share)
    networks.calibrate(codes[:256])
    if size < networks.full_resolution:
        set_segmenter_resolution(args, networks, codes[:32])
    pool = RenderedPool.render(networks, codes, plan.pool_device)
    settings = {"deficit": args.deficit, "temperature": args.temperature, "power": args.outside_power, "plan": plan}
    return Criterion(tree, roles, networks, pool, weights, args.reference, discriminator=discriminator, **settings)


def plan_memory(args: argparse.Namespace, g: Any, size: int, regions: int, pool_size: int | None) -> MemoryPlan:
    """Plan the pool's share of --memory_gib for pictures of `size` px."""
    device = g.device
    budget = memory_budget(device, args.memory_gib)
    forward = forward_bytes(g.feature_sizes, size, g.aspect)
    if pool_size is None and device.type == "cpu" and g.config.resolution > LARGEST:
        pool_size = POOL_OF_PREVIEWS  # what memory holds would take a core many minutes to render
    return plan_pool(budget, device.type, size, regions, args.train_batch_size, forward, pool_size, g.aspect)


def set_segmenter_resolution(args: argparse.Namespace, networks: FrozenNetworks, codes: torch.Tensor) -> None:
    """Set the segmenter's resolution to --segmenter_resolution, or by measuring on pictures of style codes (N, S).

    If the segmenter fails on training pictures at every size, it is distilled into a small one for them, which learns
    from its labels of full pictures. It stays in OUTPUT_DIR for resumed trainings.
    """
    size = networks.resolution
    if args.segmenter_resolution is not None:
        networks.segmenter_resolution = args.segmenter_resolution
        return
    if networks.segmenter.config.get("resolution") == max(networks.size):
        return  # it was made for these pictures
    agreement = networks.choose_segmenter_resolution(codes)
    found = f"IoU {agreement:.2f} with its labels of full ones"
    if agreement >= LEAST_AGREEMENT:
        seen = networks.segmenter_resolution
        logger.info("the segmenter sees training pictures of %d px at %d px: %s", size, seen, found)
        return
    logger.info("the segmenter fails on pictures of %d px (%s): distilling one for them", size, found)
    folder, teacher = Path(args.output_dir, f"segmenter-{size}px"), networks.segmenter
    with PartialState().main_process_first(), PartialState().local_main_process_first():
        if not (folder / "config.json").is_file():
            names = list(teacher.config.regions)
            student, iou = distil(
                networks.generator,
                lambda images, maps: teacher.segment(images).softmax(dim=1),
                names,
                seed=args.seed,
                memory_gib=args.memory_gib,
                resolution=size,
            )
            save_model(student, folder)
            logger.info("its IoU on held-out pictures: %.2f", iou["mean"])
        student = RegionSegmenter.from_pretrained(folder)
    networks.segmenter = student.eval().requires_grad_(False).to(networks.generator.device)
    networks.segmenter_resolution = size


def measure_step(criterion: Criterion, fusion: FusionHierarchy, sample: Sample) -> None:
    """Complete the criterion's plan with the measured memory of a step. `sample`: one or two mixes."""
    networks, plan = criterion.networks, criterion.plan
    known = [
        *fusion.parameters(),
        *fusion.buffers(),
        *networks.generator.parameters(),
        *networks.generator.buffers(),
        *(networks.segmenter.parameters() if hasattr(networks.segmenter, "parameters") else ()),
    ]

    def forward() -> None:
        references = criterion.targets(sample, fusion.fuse)
        found = networks(fusion(criterion.codes(sample)).style_codes)
        criterion.total(criterion(sample, references, found)[0])

    extra = reference_bytes(networks.resolution, len(criterion.roles.names), networks.generator.aspect)
    criterion.plan = plan_step(plan, backward_bytes(forward, known) // len(sample) + extra)


def set_start_gates(args: argparse.Namespace, fusion: FusionHierarchy, criterion: Criterion) -> None:
    """Set constant gates, measured on --start_pictures pictures, a few at a time."""
    networks, plan = criterion.networks, criterion.plan
    g, draw = networks.generator, step_generator(args.seed, 0, purpose=7)
    codes = draw_codes(g, args.start_pictures, draw, args.min_psi, args.mixed_share)
    batch, full_batch = gradient_batches(g, networks.resolution, plan.budget)
    start_gates(fusion, measure_energies(networks, codes, batch, full_batch, args.seed), criterion.roles.names)


def check_judges(args: argparse.Namespace) -> None:
    """Raise a ValueError or FileNotFoundError if the folder of --judges holds none, before anything is computed."""
    if args.judges and args.validation_pairs:
        load_judges(args.judges)


def find_judges(args: argparse.Namespace, pipe: StyleFusionPipeline, found: Path | None = None) -> Judges | None:
    """Return the judges of the ruler: those of --judges, those `found` with the regions, or the embedded ones.

    None where none fit, after logging why. ValueError or FileNotFoundError if the folder of --judges does not fit.
    """
    if not args.validation_pairs:
        return None
    try:
        judges = load_judges(args.judges or found, pipe.generator.device)
        build_subject(pipe, judges)
    except (ValueError, FileNotFoundError) as error:
        if args.judges:
            raise
        logger.info("no ruler's figures in this training: %s", error)
        return None
    return judges
