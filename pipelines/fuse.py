"""StyleFusionPipeline: one latent code per region, fused into one harmonized picture (arXiv 2107.07437)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from stylefusion_hf.core import edits as editing
from stylefusion_hf.core.checks import check_choice, check_count, check_flag
from stylefusion_hf.core.codes import NOISE_MODES, Code, LatentSpace, NoiseMode, parse_labels
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.hub.loading import HubMixin
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.hub_segmenter import HubSegmenter
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.output import OutputType, StyleFusionPipelineOutput
from stylefusion_hf.pipelines.refining import fuse_and_refine


class _Options(TypedDict, total=False):
    """The arguments of a call that do not decide about its result's type."""

    latent_type: LatentSpace
    class_labels: Any
    strength: float | Mapping[str, float]
    edits: Mapping[str, Any] | None
    truncation_psi: float | None
    truncation_cutoff: int | None
    translate: Sequence[float]
    rotate: float
    refine_steps: int
    noise_mode: NoiseMode
    generator: torch.Generator | Sequence[torch.Generator] | None
    num_images_per_prompt: int
    output_masks: bool
    return_dict: bool


class StyleFusionPipeline(HubMixin, DiffusionPipeline):
    """Fuses one code per region, and codes for what regions share, into pictures.

    Args:
        generator: a `StyleGenerator`, such as a StyleGAN2.
        fusion: the region tree and its fusion nets, built for the generator's style sizes.
        segmenter: finds the regions of a picture; only needed for masks.
        encoder: turns images into codes, `encode(images in [-1, 1]) -> w+`; only needed for image codes.

    Raises:
        ValueError: the components do not fit each other.

    Example:
        >>> from stylefusion_hf import FusionHierarchy, StyleFusionPipeline, StyleGAN2Generator
        >>> generator = StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=16, w_dim=16, mapping_layers=2)
        >>> fusion = FusionHierarchy(
        ...     tree="all*(face, hair)", conv_sizes=[8, 8, 8], rgb_sizes=[8, 8], padded_width=8, hidden_width=16
        ... )
        >>> pipe = StyleFusionPipeline(generator, fusion)
        >>> pipe(base=1, regions={"hair": [7, 8]}).images[1].size
        (8, 8)
    """

    model_cpu_offload_seq = "encoder->generator->fusion->segmenter"
    _optional_components = ["segmenter", "encoder"]  # noqa: RUF012  # diffusers declares it this way

    def __init__(
        self,
        generator: StyleGenerator,
        fusion: FusionHierarchy,
        segmenter: RegionSegmenter | HubSegmenter | None = None,
        encoder: Any = None,
    ):
        super().__init__()
        _steps.check_components(generator, fusion, segmenter)
        self.register_modules(generator=generator, fusion=fusion, segmenter=segmenter, encoder=encoder)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)
        self._slice_size: int | None = None

    def enable_slicing(self, slice_size: int = 1) -> None:
        """Render `slice_size` pictures at a time: the same pictures in less memory."""
        size = check_count("slice_size", slice_size, 2**31)
        self._slice_size = size

    def disable_slicing(self) -> None:
        """Render a whole batch at once."""
        self._slice_size = None

    # ------------------------------------------------------------------------------------------------
    # Public calls.

    @overload
    def __call__(
        self,
        base: Any = None,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[_Options],
    ) -> StyleFusionPipelineOutput[list[Image.Image]]: ...
    @overload
    def __call__(
        self,
        base: Any = None,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        output_type: Literal["np"],
        **options: Unpack[_Options],
    ) -> StyleFusionPipelineOutput[np.ndarray]: ...
    @overload
    def __call__(
        self,
        base: Any = None,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        output_type: Literal["pt", "latent"],
        **options: Unpack[_Options],
    ) -> StyleFusionPipelineOutput[torch.Tensor]: ...
    @torch.no_grad()
    def __call__(
        self,
        base: Any = None,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        latent_type: LatentSpace = "z",
        class_labels: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        edits: Mapping[str, Any] | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        translate: Sequence[float] = (0.0, 0.0),
        rotate: float = 0.0,
        refine_steps: int = 0,
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        output_masks: bool = False,
        return_dict: bool = True,
    ) -> StyleFusionPipelineOutput[Any]:
        """Make pictures in which each region follows its own code.

        A code is a seed (int), a picture (if the pipeline has an encoder), a tensor in the space `latent_type`, a
        `Code`, or a list of these. A picture is a PIL image, a file path, or an array (H, W, C) of uint8 or of numbers
        in [0, 1] (see `latents.parse_code`). The longest list sets the batch size; lists of length 1 repeat. Pictures
        have the generator's aspect ratio, which is mostly a square: align photographs first (`faces.align`) or fit
        them (`images.fit_picture`); they are never cropped here.

        Args:
            base: code of every node that no other argument sets; None draws one seed per picture from `generator`.
            regions: node of the tree -> code of its whole subtree; the more specific name wins.
            global_code: code of every inner node that `regions` sets neither by name nor through an ancestor.
            nodes: node -> code of that node alone; overrides `regions` and `global_code`.
            latent_type: the space of bare tensors: "z", "w", "w+" or "s".
            class_labels: for seeds and z of a conditional generator: classes, or vectors (B, label_dim), one per
                picture. None: every seed has its own class (`seed_classes`), so regions mix classes.
            strength: 0 to 1, how far style codes move from the base's to the given ones. A dict sets it per name of
                `regions` and `nodes`; the root's name stands for `global_code`.
            edits: node of the tree -> what to add to the codes of its whole subtree, independent of `strength`: a
                `Direction` (with strength 1), an `Edit` such as `direction(2.5)`, a (direction, strength) pair, or a
                list of these. Edits of several nodes, including a node and its ancestor, add up; the root's name, or
                "all", edits everything. A list of strengths has one per picture.
            truncation_psi: truncation of seeds and z: 1 for none, 0 for the mean picture; None for the model's
                default.
            truncation_cutoff: number of rows of w+ to truncate; None for all.
            translate, rotate: move the whole picture, its details included: (right, down) in fractions of the width,
                and degrees counterclockwise about the middle, before the translation. Only a StyleGAN3 can.
            refine_steps: steps of optimizing the gates of these pictures, so that each swapped region becomes more
                like its source and less changes around it (`editing/refinement.py`); needs a segmenter. 0 for what the
                fusion nets give in one pass. 20 make small regions visibly better, in a few seconds on a CPU.
            noise_mode: "const" (the stored noise), "random" (from `generator`) or "none".
            generator: source of random numbers; a list has one per picture, and each picture then equals its single
                run.
            num_images_per_prompt: pictures per input, in consecutive order; they differ in the random draws.
            output_type: "pil", "np" (B, H, W, C), "pt" (B, C, H, W), both in [0, 1], or "latent": the style codes.
            output_masks: also return each region's mask.
            return_dict: False returns a plain tuple of the same values (not reflected in the annotated type).

        Returns:
            `images`, `style_codes`, `recipe` and, if requested, `masks`.

        Raises:
            ValueError: names the argument and what it may be.
            OSError: an image cannot be decoded.
        """
        self._check_outputs(output_type, output_masks, return_dict)
        each = check_count("num_images_per_prompt", num_images_per_prompt, 1024)
        check_choice("noise_mode", noise_mode, NOISE_MODES)
        labels = parse_labels(class_labels)
        rows, fields = _steps.read_codes(self, base, regions, global_code, nodes, latent_type)
        lengths = {name: len(group) for name, group in rows.items()}
        if labels is not None:
            lengths["class_labels"] = len(labels)
        edited = self._edits({} if edits is None else edits)
        lengths |= {f"edits[{node!r}]": len(group) for node, group in edited.items()}
        batch = _steps.input_batch(lengths, generator, each) * each

        def repeat(group: Any) -> Any:  # pictures of one input are adjacent
            return group if group is None or len(group) == 1 else tuple(row for row in group for _ in range(each))

        recipe = Recipe(
            base=repeat(rows["base"]) if "base" in rows else _steps.draw_seeds(generator, batch),
            num_images=batch,
            regions={node: repeat(group) for node, group in fields["regions"].items()},
            nodes={node: repeat(group) for node, group in fields["nodes"].items()},
            global_code=repeat(fields["global_code"]),
            class_labels=repeat(labels),
            truncation_psi=self.generator.config.truncation_psi if truncation_psi is None else truncation_psi,
            truncation_cutoff=truncation_cutoff,
            strength=strength,
            noise_mode=noise_mode,
            translate=translate,  # type: ignore[arg-type]  # the recipe checks it
            rotate=rotate,
            refine_steps=refine_steps,
            noise_seeds=_steps.draw_seeds(generator, batch) if noise_mode == "random" else None,
            edits={node: repeat(group) for node, group in edited.items()},
        )
        return self._render(recipe, output_type, output_masks, return_dict)

    @torch.no_grad()
    def from_recipe(
        self,
        recipe: Recipe | Mapping[str, Any] | str,
        *,
        check_model: bool = True,
        output_type: OutputType = "pil",
        output_masks: bool = False,
        return_dict: bool = True,
    ) -> StyleFusionPipelineOutput[Any]:
        """Make the pictures that a recipe describes.

        Args:
            recipe: the `recipe` of an output, or its JSON text.
            check_model: refuse a recipe that was written with other weights; False renders it with these weights.
            output_type, output_masks, return_dict: as in a call.

        Raises:
            ValueError: not a recipe (names the field), or a recipe of another model.
        """
        self._check_outputs(output_type, output_masks, return_dict)
        check_flag("check_model", check_model)
        if isinstance(recipe, str):
            recipe = Recipe.from_json(recipe)
        elif not isinstance(recipe, Recipe):
            recipe = Recipe.from_dict(recipe)
        written = recipe.model or {}
        if check_model and written.get("sha256"):
            here = self.model_identity()
            other = [name for name, digits in written["sha256"].items() if here["sha256"].get(name, digits) != digits]
            if other:
                raise ValueError(
                    f"the recipe was written with the model {written.get('name')!r}, this is {here['name']!r}, and"
                    f" {' and '.join(other)} have other weights: load that model, or pass check_model=False"
                )
        return self._render(recipe, output_type, output_masks, return_dict)

    # ------------------------------------------------------------------------------------------------
    # Steps of a call.

    def _render(self, recipe: Recipe, output_type: str, output_masks: bool, return_dict: bool) -> Any:
        psi = self.generator.config.truncation_psi if recipe.truncation_psi is None else recipe.truncation_psi
        recipe = replace(recipe, truncation_psi=psi, model=self.model_identity())
        style = fuse_and_refine(self, recipe, self._slice_size)
        images: Any = style
        masks = None
        if output_type != "latent" or output_masks:
            noise, size = (recipe.noise_mode, recipe.noise_seeds), self._slice_size
            pictures = _steps.synthesize(self.generator, style, *noise, slice_size=size)
            masks = _steps.segment(self.segmenter, pictures, size) if output_masks else None
            if output_type != "latent":
                images = self.image_processor.postprocess(pictures, output_type=output_type)
        self.maybe_free_model_hooks()
        output = StyleFusionPipelineOutput(images=images, style_codes=style, recipe=recipe.to_dict(), masks=masks)
        return output if return_dict else output.to_tuple()

    def _edits(self, edits: Any) -> dict[str, tuple[Code, ...]]:
        """Return node -> what to add to its subtree's codes, without edits of strength 0."""
        if not isinstance(edits, Mapping):
            raise ValueError(f"edits must be a dict, node -> direction, not {type(edits).__name__}")
        tree, none = self.fusion.tree, editing.Edit(())
        edited: dict[str, editing.Edit] = {}
        for name, value in edits.items():
            everything = isinstance(name, str) and name == "all" and name not in tree.nodes
            node = tree.root if everything else _steps.resolve(tree, "edits", name)
            edited[node] = edited.get(node, none) + editing.Edit.of(value, f"edits[{name!r}]")
        rows: dict[str, tuple[Code, ...]] = {}
        for node, edit in edited.items():
            try:
                rows |= {node: edit.displacement(self.generator).rows()} if edit else {}
            except ValueError as error:  # shape of a direction, or strengths of different lengths
                raise ValueError(f"edits[{node!r}]: {error}") from None
        return rows

    def _check_outputs(self, output_type: str, output_masks: bool, return_dict: bool) -> None:
        _steps.check_output_type(output_type, self.generator.config.img_channels)
        check_flag("output_masks", output_masks)
        check_flag("return_dict", return_dict)
        if output_masks and self.segmenter is None:
            raise ValueError("output_masks needs a segmenter, and this pipeline has none: load it with segmenter=...")
