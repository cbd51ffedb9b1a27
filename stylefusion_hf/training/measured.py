"""Fusion nets without training: constant gates, measured on pictures of the generator (`--max_train_steps 0`).

A style channel goes to the child whose regions it drives most (`start_gates.py`). Trainings start from such gates, and
they are a baseline: they transfer hair, skin and background well, and regions with few style channels of their own
less.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from stylefusion_hf.core.files import save_image, write_text
from stylefusion_hf.core.memory import RENDER_SHARE, chunk_size, forward_bytes, memory_budget
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.evaluation.brief import brief
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.training._regions import take_regions
from stylefusion_hf.training.card import keep_source, model_card
from stylefusion_hf.training.common import push_to_hub
from stylefusion_hf.training.fusion_setup import (
    build_fusion,
    check_judges,
    find_judges,
    fit_preview,
    load_frozen,
    set_segmenter_resolution,
)
from stylefusion_hf.training.networks import FrozenNetworks, training_resolution
from stylefusion_hf.training.output_folder import keep_output
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.start_gates import gradient_batches, measure_energies, start_gates

logger = logging.getLogger("stylefusion_hf")
STATISTICS = 4096  # codes whose mean and deviation standardize what gates see
POWER, NOVELTY, COMPANY = 4.0, 0.5, 10.0  # of `start_gates`: gates are closer to 0 and 1 than those of a training
SHEET_ROWS = 4


def measure(args: argparse.Namespace, accelerator: Accelerator, started: float) -> Path:
    """Write a pipeline whose fusion nets have measured constant gates to --output_dir; return the folder.

    Raises:
        ValueError: flags that do not fit the model. OSError: a model that is not there.
    """
    folder, device = Path(args.output_dir), accelerator.device
    generator, _ = load_frozen(args, accelerator)
    check_judges(args)
    fit_preview(args, generator)
    regions = take_regions(args, accelerator, generator)
    if not accelerator.is_main_process:
        return folder
    fusion = build_fusion(args, regions.tree, generator).to(device).requires_grad_(False).eval()
    pipe = StyleFusionPipeline(generator, fusion, regions.segmenter)
    judges = find_judges(args, pipe, regions.judges)
    roles = Roles.of(regions.tree, list(regions.segmenter.config.regions), args.pose_regions, args.static_regions)
    draw = step_generator(args.seed, 0, purpose=7)
    if args.standardise:
        fusion.set_statistics(draw_codes(generator, STATISTICS, draw, args.min_psi, args.mixed_share))
    codes = draw_codes(generator, args.start_pictures, draw, args.min_psi, args.mixed_share)
    networks = frozen_networks(args, generator, regions.segmenter, roles, codes)
    batch, full_batch = gradient_batches(generator, networks.resolution, memory_budget(device, args.memory_gib))
    energies = measure_energies(networks, codes, batch, full_batch, args.seed, progress=True)
    start_gates(fusion, energies, roles.names, novelty=NOVELTY, company=COMPANY, power=POWER)

    keep_output(folder)
    pipe.save_pretrained(folder)
    save_swaps(fusion, networks, codes, folder / "samples" / "000000.png")
    figures = {} if judges is None else brief(pipe, judges, args.validation_pairs)
    write_text(folder / "README.md", model_card(args, regions.tree, figures, time.monotonic() - started))
    keep_source(args.pretrained_model_name_or_path, folder)
    push_to_hub(args, folder)
    return folder


def frozen_networks(
    args: argparse.Namespace, generator: StyleGenerator, segmenter, roles: Roles, codes: torch.Tensor
) -> FrozenNetworks:
    """Generator and segmenter at the training resolution, for pictures of style codes (N, S)."""
    size = training_resolution(args.train_resolution, generator.picture_sizes)
    budget = memory_budget(generator.device, args.memory_gib) * RENDER_SHARE
    known = list(segmenter.config.regions)
    networks = FrozenNetworks(
        generator,
        segmenter,
        order=[known.index(name) for name in roles.names],
        resolution=size,
        features=(),
        batch=chunk_size(forward_bytes(generator.feature_sizes, size, generator.aspect), budget, 64),
    )
    if size < networks.full_resolution:
        set_segmenter_resolution(args, networks, codes[:32])
    return networks


@torch.no_grad()
def save_swaps(fusion: FusionHierarchy, networks: FrozenNetworks, codes: torch.Tensor, path: Path) -> None:
    """Rows of base, source, and one swapped leaf per column, at the training resolution."""
    tree, rows = fusion.tree, min(SHEET_ROWS, len(codes) // 2)
    base, source = codes[:rows], codes[rows : 2 * rows]
    pictures = [base, source]
    for leaf in tree.leaves:
        pictures.append(fusion.fuse({node: source if node == leaf else base for node in tree.nodes}))
    each = [networks.generator.synthesis(s, up_to=networks.resolution).clamp(-1, 1) for s in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(torch.stack(each, dim=1).flatten(0, 1), len(each)), path)
