"""The steps shared by the pipelines: from a recipe to style codes, and from style codes to pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from stylefusion_hf.core.checks import check_choice, listed
from stylefusion_hf.core.codes import LATENT_SPACES, Row, check_shapes, common_batch, labels_to_tensor
from stylefusion_hf.core.edits import style_offsets
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.core.seeds import MAX_SEED
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.models import latents
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.hooks import bring_back, run_eagerly, unwrap
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.style_generator import StyleGenerator

KINDS = {  # component -> class names for messages, and an attribute that identifies it
    "generator": ("StyleGAN2Generator, MobileStyleGANGenerator or StyleGAN3Generator", "conv_sizes"),
    "fusion": ("FusionHierarchy", "tree"),
    "segmenter": ("RegionSegmenter or HubSegmenter", "segment"),
}
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, eq=False)
class NodeSetting:
    """A node's codes, and how far it moves from the base toward them."""

    rows: tuple[Row, ...]
    strength: float = 1.0


def check_kind(name: str, model: Any) -> None:
    """Raise ValueError unless `model` can serve as the component `name` (duck-typed)."""
    kind, attribute = KINDS[name]
    if not hasattr(model, attribute) or (name == "fusion" and not isinstance(model.tree, RegionTree)):
        raise ValueError(f"{name} must be a {kind}, got {type(model).__name__}")


def check_components(generator: Any, fusion: Any, segmenter: Any = None) -> None:
    """Raise ValueError, naming both sides, unless fusion nets and segmenter fit this generator and region tree."""
    check_kind("generator", generator)
    check_kind("fusion", fusion)
    for sizes in ("conv_sizes", "rgb_sizes"):
        of_generator, of_fusion = list(getattr(generator, sizes)), list(fusion.config[sizes])
        if of_generator != of_fusion:
            raise ValueError(
                f"the generator's {sizes} are {of_generator}, the fusion nets' {of_fusion}: fusion nets only fit the"
                " generator that they were trained for"
            )
    if segmenter is not None:
        check_kind("segmenter", segmenter)
        drawn, seen = generator.config.img_channels, getattr(segmenter.config, "img_channels", 3)
        if drawn != seen:
            raise ValueError(f"the generator's pictures have {drawn} channels, the segmenter takes {seen}")
        regions, leaves = segmenter.config.regions, fusion.tree.leaves
        if missing := [leaf for leaf in leaves if leaf not in regions]:
            raise ValueError(
                f"the segmenter does not know the regions {listed(missing)}: it has {listed(regions)}, the"
                f" tree's leaves are {listed(leaves)}"
            )


def check_output_type(output_type: Any, img_channels: int) -> None:
    """Raise ValueError unless it is one of OUTPUT_TYPES that pictures of so many channels can have."""
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "pil":
        check_viewable(img_channels)


# ----------------------------------------------------------------------------------------------------
# Codes, batches and random numbers.


def input_batch(lengths: Mapping[str, int], generator: Any, each: int) -> int:
    """Return the number of inputs; a list of generators counts as a list with `each` entries per input.

    Args:
        lengths: argument name -> its length.
        generator: a `torch.Generator`, a list of them (one per picture), or None.
        each: pictures per input.
    """
    if isinstance(generator, (list, tuple)):
        if not generator or not all(isinstance(item, torch.Generator) for item in generator):
            raise ValueError("generator must be a torch.Generator or a list of them, one per picture")
        if len(generator) > 1:
            if len(generator) % each:
                raise ValueError(
                    f"generator has length {len(generator)}, which num_images_per_prompt={each} does not divide"
                )
            lengths = {**lengths, "generator": len(generator) // each}
    elif not (generator is None or isinstance(generator, torch.Generator)):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}; to give a seed,"
            " use base="
        )
    return common_batch({"base": 1, **lengths})


def draw_seeds(generator: Any, count: int) -> tuple[int, ...]:
    """Draw one seed per picture, each from its own generator if there is a list."""
    sources = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    sources = sources if len(sources) == count else sources * count
    high = MAX_SEED + 1
    return tuple(int(torch.randint(high, (1,), generator=g, device=None if g is None else g.device)) for g in sources)


def read_codes(
    pipe: Any, base: Any, regions: Any, global_code: Any, nodes: Any, latent_type: str
) -> tuple[dict[str, tuple[Row, ...]], dict[str, Any]]:
    """Parse the codes of a call and encode its images.

    Returns:
        given: argument name, as in error messages -> its rows.
        fields: `regions`, `nodes` and `global_code` as fields of a recipe.
    """
    check_choice("latent_type", latent_type, LATENT_SPACES)
    regions, nodes = {} if regions is None else regions, {} if nodes is None else nodes
    given = {} if base is None else {"base": latents.parse_code(base, latent_type, "base")}
    if global_code is not None:
        given["global_code"] = latents.parse_code(global_code, latent_type, "global_code")
    for argument, codes in (("regions", regions), ("nodes", nodes)):
        if not isinstance(codes, Mapping):
            raise ValueError(f"{argument} must be a dict, node -> code, not {type(codes).__name__}")
        for node, code in codes.items():
            resolve(pipe.fusion.tree, argument, node)
            name = f"{argument}[{node!r}]"
            given[name] = latents.parse_code(code, latent_type, name)
    config, device = pipe.generator.config, None
    if any(isinstance(row, Image.Image) for group in given.values() for row in group):
        device = pipe._execution_device
    rows = latents.encode_images(given, pipe.encoder, pipe.generator.picture_size, config.img_channels, device)
    fields: dict[str, Any] = {
        argument: {node: rows[f"{argument}[{node!r}]"] for node in codes}
        for argument, codes in (("regions", regions), ("nodes", nodes))
    }
    return rows, {**fields, "global_code": rows.get("global_code")}


# ----------------------------------------------------------------------------------------------------
# From a recipe to style codes.


def check_cutoff(generator: StyleGenerator, recipe: Recipe) -> None:
    """Raise ValueError if the cutoff exceeds the rows of w+, even if nothing is truncated."""
    if recipe.truncation_cutoff is not None and recipe.truncation_cutoff > generator.num_ws:
        raise ValueError(
            f"truncation_cutoff: the truncation cutoff must be between 0 and {generator.num_ws} (the rows of w+), got"
            f" {recipe.truncation_cutoff}"
        )


def resolve(tree: RegionTree, argument: str, node: Any) -> str:
    """Return the tree's name for `node`; ValueError, naming the argument too, if it has none."""
    try:
        return tree.resolve(node)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def node_settings(tree: RegionTree, recipe: Recipe) -> dict[str, NodeSetting]:
    """Return the setting of every active node; ValueError for a name that can have no effect."""
    strength = recipe.strength
    for argument, codes in (("regions", recipe.regions), ("nodes", recipe.nodes), ("edits", recipe.edits)):
        for node in codes:
            if resolve(tree, argument, node) not in tree.active:
                above = next(name for name in tree.ancestors(node)[::-1] if name not in tree.fused)
                raise ValueError(
                    f"{argument}[{node!r}] can have no effect: {above!r} above it has no fusion net and uses its own"
                    f" code for everything below. Set {above!r}; the nodes with an effect are {listed(tree.active)}"
                )
    if recipe.global_code is not None and tree.root not in tree.branches:
        raise ValueError(f"global_code can have no effect: the tree is the single region {tree.root!r}")
    if isinstance(strength, Mapping):
        named = {*recipe.regions, *recipe.nodes, *([tree.root] if recipe.global_code is not None else [])}
        for node in strength:
            if resolve(tree, "strength", node) not in named:
                names = listed(sorted(named)) or "no node"
                raise ValueError(
                    f"strength[{node!r}] can have no effect: this call gives codes for {names}"
                    f" (the strength of {tree.root!r} applies to global_code)"
                )

    def setting(node: str, rows: tuple[Row, ...]) -> NodeSetting:
        return NodeSetting(rows, strength.get(node, 1.0) if isinstance(strength, Mapping) else strength)

    assigned = tree.assign(
        base=NodeSetting(recipe.base),
        regions={node: setting(node, rows) for node, rows in recipe.regions.items()},
        nodes={node: setting(node, rows) for node, rows in recipe.nodes.items()},
        global_code=None if recipe.global_code is None else setting(tree.root, recipe.global_code),
    )
    return {node: assigned[node] for node in tree.active}


def style_codes(
    generator: StyleGenerator, recipe: Recipe, settings: Mapping[str, NodeSetting], device: Any
) -> tuple[torch.Tensor, dict[str, list[int]], list[int]]:
    """Map all nodes' codes to style codes in one batch.

    Returns:
        codes: (N, S), float32: one row per distinct (code, label) pair, shared by all nodes and pictures that use it.
        at: node -> the rows of its codes: one, or one per picture.
        base: the rows of the base's codes; empty unless a strength or a refinement needs them.
    """
    batch, labels = recipe.num_images, recipe.class_labels
    index: dict[Any, int] = {}
    distinct: list[tuple[Row, int]] = []

    def places(rows: tuple[Row, ...]) -> list[int]:  # indices of their style codes, 1 or `batch`
        found = []
        for i in range(batch if len(rows) > 1 or (labels is not None and len(labels) > 1) else 1):
            row, label = rows[i % len(rows)], 0 if labels is None else i % len(labels)
            key = (row if isinstance(row, int) else id(row.tensor), isinstance(row, int), label)
            if key not in index:
                index[key] = len(distinct)
                distinct.append((row, label))
            found.append(index[key])
        return found

    needs_base = recipe.refine_steps or any(setting.strength != 1.0 for setting in settings.values())
    base = places(recipe.base) if needs_base else []
    at = {node: places(setting.rows) for node, setting in settings.items()}
    table = None
    if labels is not None:
        table = labels_to_tensor(labels, generator.config.label_dim)[[label for _, label in distinct]]
    psi = 1.0 if recipe.truncation_psi is None else recipe.truncation_psi
    rows = [row for row, _ in distinct]
    return latents.codes_to_style(generator, rows, table, psi, recipe.truncation_cutoff, device), at, base


def apply_strength(given: torch.Tensor, base: torch.Tensor | None, strength: float) -> torch.Tensor:
    """Interpolate from the base's style codes to the given ones; strength 1 returns the given ones."""
    return given if strength == 1.0 or base is None else base + strength * (given - base)


# {node: codes}, codes of the base -> fused codes, in place of one pass of the fusion nets
Fuse = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]


def fuse_recipe(
    generator: StyleGenerator, fusion: FusionHierarchy, recipe: Recipe, device: Any, refine: Fuse | None = None
) -> torch.Tensor:
    """Return the fused style codes (num_images, S), float32: one mapping batch, one pass of the fusion nets.

    The codes are those of the moved pictures, where the recipe moves them. ValueError for a generator that cannot.

    refine: what fuses a recipe with `refine_steps`; None leaves the refinement out.
    """
    style = fuse_nodes(generator, fusion, recipe, device, refine)
    return move(generator, style, recipe)


def move(generator: StyleGenerator, style: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the style codes (B, S) of the pictures moved and rotated as the recipe says."""
    return generator.move_style(style, recipe.translate, recipe.rotate) if recipe.moves else style


def fuse_nodes(
    generator: StyleGenerator, fusion: FusionHierarchy, recipe: Recipe, device: Any, refine: Fuse | None = None
) -> torch.Tensor:
    """Return the fused style codes (num_images, S) before any motion.

    The recipe's `truncation_psi` must be a number. ValueError for names, shapes and labels that do not fit the models.
    """
    check_shapes(generator, recipe.groups())
    check_cutoff(generator, recipe)
    settings = node_settings(fusion.tree, recipe)
    batch = recipe.num_images
    codes, at, base = style_codes(generator, recipe, settings, device)
    if len({tuple(place) for place in at.values()}) == 1 and not (base or recipe.edits):
        return codes[at[fusion.tree.root]].expand(batch, -1).clone()  # fusing equal codes gives that code
    start = codes[base] if base else None
    given = {node: apply_strength(codes[at[node]], start, setting.strength) for node, setting in settings.items()}
    edited = apply_edits(generator, fusion.tree, recipe, given)
    if refine is not None and recipe.refine_steps and start is not None:
        return refine(edited, start)
    return fusion(edited, return_dict=False)[0].expand(batch, -1).contiguous()


def apply_edits(
    generator: StyleGenerator, tree: RegionTree, recipe: Recipe, given: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add the recipe's edits to the style codes `given` of their nodes and of all nodes below.

    Edits come after the strengths, because an edit has its own strength.
    """
    codes = dict(given)
    for node, displacements in recipe.edits.items():
        offsets = style_offsets(generator, displacements, codes[node].device)  # type: ignore[arg-type]  # no seeds
        codes |= {below: codes[below] + offsets for below in tree.subtree(node) if below in codes}
    for code in codes.values() if recipe.edits else ():
        latents.check_style(code)
    return codes


# ----------------------------------------------------------------------------------------------------
# From style codes to pictures.


def synthesize(
    generator: StyleGenerator,
    style: torch.Tensor,
    noise_mode: str = "const",
    noise_seeds: Sequence[int] | None = None,
    slice_size: int | None = None,
    up_to: int | None = None,
) -> torch.Tensor:
    """Render style codes (B, S) to pictures (B, C, H, W), float32 in [-1, 1], `slice_size` at a time.

    Random noise has one seed per picture, so it does not depend on the batch. `up_to` is one of the generator's
    `picture_sizes`, for previews; None for the full size.
    """
    own_noise = noise_seeds is not None and generator.has_noise
    size = 1 if own_noise else slice_size or len(style)
    pictures = []
    style = style.to(generator.dtype)
    if not bool(style.isfinite().all()):
        raise ValueError(
            f"the fused style codes are not finite in {generator.dtype}: load the pipeline in float32, and check that"
            " the fusion nets' weights are finite"
        )
    for k, part in enumerate(style.split(size)):
        noise = torch.Generator().manual_seed(noise_seeds[k % len(noise_seeds)]) if own_noise and noise_seeds else None
        with run_eagerly(generator) if own_noise else nullcontext():  # compiled graphs do not draw from a generator
            image = generator(
                part, latent_type="s", noise_mode=noise_mode, generator=noise, up_to=up_to, return_dict=False
            )[0]
        pictures.append(image.float().clamp(-1, 1))
    made = torch.cat(pictures)
    if not bool(made.isfinite().all()):
        raise ValueError(
            f"the pictures are not finite: the codes are too large for {generator.dtype}, or the generator's weights"
            " are damaged"
        )
    return made


def segment(segmenter: Any, images: torch.Tensor, slice_size: int | None = None) -> dict[str, torch.Tensor]:
    """Return region -> (B, H, W), bool, for pictures in [-1, 1]: the pixels where the region's logit is largest.

    slice_size: pictures at a time; None for 16, and fewer above 128 pixels.
    """
    size = slice_size or chunk_size(math.isqrt(images.shape[-2] * images.shape[-1]), 16)
    parts = images.to(getattr(segmenter, "dtype", images.dtype)).split(size)
    labels = torch.cat([logits(segmenter, part).argmax(dim=1) for part in parts])
    return {name: labels == i for i, name in enumerate(segmenter.config.regions)}


def logits(segmenter: Any, images: torch.Tensor) -> torch.Tensor:
    """Return logits (B, R, H, W), through the segmenter's own call.

    A segmenter that is not of this package has only its method `segment`, which hooks do not see.
    """
    if isinstance(unwrap(segmenter), StrictModelMixin):
        return segmenter(images, return_dict=False)[0]
    bring_back(segmenter)
    return segmenter.segment(images)
