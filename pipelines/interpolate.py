"""StyleFusionInterpolationPipeline: walks from code to code, region by region; all other codes stay fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from itertools import islice
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from stylefusion_hf.core.checks import check_count, check_flag, short
from stylefusion_hf.core.codes import LatentSpace, parse_labels
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.hub.loading import HubMixin
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.hub_segmenter import HubSegmenter
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines import walk as _walk
from stylefusion_hf.pipelines.output import OutputType, StyleFusionInterpolationPipelineOutput
from stylefusion_hf.pipelines.walk import Walk

NOISE_MODES = ("const", "none")


class FrameStream(Iterator[Any]):
    """An iterator over the frames of a walk, one batch at a time.

    Args:
        batches: lists of PIL images, arrays, tensors or style codes.
        frames: total number of frames.
        keyframes: the frame index of each keyframe.
        recipe: recipe of the keyframes, as in the output of a call.
    """

    def __init__(self, batches: Iterator[Any], frames: int, keyframes: list[int], recipe: dict[str, Any]):
        self.frames, self.keyframes, self.recipe = frames, keyframes, recipe
        self._batches = batches

    def __next__(self) -> Any:
        return next(self._batches)


class _Options(TypedDict, total=False):
    """The arguments of a call that do not decide about its result's type."""

    frames: int | None
    steps: int | None
    loop: bool
    space: Literal["w", "s", "z"]
    easing: Literal["linear", "smooth"]
    latent_type: LatentSpace
    class_labels: Any
    strength: float | Mapping[str, float]
    truncation_psi: float | None
    truncation_cutoff: int | None
    translate: Sequence[float]
    rotate: float
    noise_mode: Literal["const", "none"]
    generator: torch.Generator | Sequence[torch.Generator] | None
    batch_size: int
    return_dict: bool


class StyleFusionInterpolationPipeline(HubMixin, DiffusionPipeline):
    """Walks through keyframes of codes: of the whole picture, of regions, and of what regions share, in any mix.

    The components are those of `StyleFusionPipeline`; each pipeline loads what the other saved, and `from_pipe` makes
    one from the other with the same weights.

    Args:
        generator: a `StyleGenerator`, such as a StyleGAN2.
        fusion: the region tree and its fusion nets, built for the generator's style sizes.
        segmenter: not used; kept so that converting between pipelines loses no component.
        encoder: turns images into codes, `encode(images in [-1, 1]) -> w+`; only needed for image codes.

    Raises:
        ValueError: the components do not fit each other.

    Example:
        >>> from stylefusion_hf import FusionHierarchy, StyleFusionInterpolationPipeline, StyleGAN2Generator
        >>> generator = StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=16, w_dim=16, mapping_layers=2)
        >>> fusion = FusionHierarchy(
        ...     tree="all*(face, hair)", conv_sizes=[8, 8, 8], rgb_sizes=[8, 8], padded_width=8, hidden_width=16
        ... )
        >>> pipe = StyleFusionInterpolationPipeline(generator, fusion)
        >>> out = pipe(base=1, regions={"hair": [7, 8, 9]}, steps=4, loop=True)
        >>> len(out.frames), out.keyframes
        (12, [0, 4, 8])
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
    ) -> StyleFusionInterpolationPipelineOutput[list[Image.Image]]: ...
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
    ) -> StyleFusionInterpolationPipelineOutput[np.ndarray]: ...
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
    ) -> StyleFusionInterpolationPipelineOutput[torch.Tensor]: ...
    def __call__(
        self,
        base: Any = None,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        frames: int | None = None,
        steps: int | None = None,
        loop: bool = False,
        space: Literal["w", "s", "z"] = "w",
        easing: Literal["linear", "smooth"] = "linear",
        latent_type: LatentSpace = "z",
        class_labels: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        translate: Sequence[float] = (0.0, 0.0),
        rotate: float = 0.0,
        noise_mode: Literal["const", "none"] = "const",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 8,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> StyleFusionInterpolationPipelineOutput[Any]:
        """Compute all frames of a walk; `stream` yields them without holding all in memory.

        Codes are given as for `StyleFusionPipeline`: a seed, a PIL image, a tensor, a `Code`. A list of K codes
        gives K keyframes; all lists of a call have the same length, and a single code stays fixed. The frame on a
        keyframe is the picture that `StyleFusionPipeline` makes from these codes (bit-exact with `batch_size=1`,
        otherwise within 1/255), and only codes given as lists change from frame to frame.

        Args:
            base: code of every node that no other argument sets; None draws one seed from `generator`.
            regions: node of the tree -> code of its whole subtree; the more specific name wins.
            global_code: code of every inner node that `regions` sets neither by name nor through an ancestor.
            nodes: node -> code of that node alone; overrides `regions` and `global_code`.
            frames: number of frames of the whole walk.
            steps: alternative to `frames`: frames from each keyframe to the next (default: 30).
            loop: continue from the last keyframe to the first; the first frame is not repeated at the end.
            space: "w" (a straight line; w and w+, the space of encoded images), "s" (the same line, but style codes
                may be keyframes too) or "z" (along the sphere, then mapped and truncated; seeds and z only).
            easing: "linear", or "smooth": slow near every keyframe.
            latent_type: the space of bare tensors: "z", "w", "w+" or "s".
            class_labels: for seeds and z of a conditional generator; one, or one per keyframe (not with "z"). None:
                every seed has its own class.
            strength: as in `StyleFusionPipeline`, the same in every frame.
            truncation_psi, truncation_cutoff: as in `StyleFusionPipeline`.
            translate, rotate: as in `StyleFusionPipeline`, the same in every frame.
            noise_mode: "const" (the stored noise, the same in every frame) or "none".
            generator: draws the base if none is given; a list draws one for each keyframe.
            batch_size: number of frames computed together.
            output_type: "pil", "np" (F, H, W, C), "pt" (F, C, H, W), both in [0, 1], or "latent": the style codes.
            return_dict: False returns a plain tuple of the same values (not reflected in the annotated type).

        Returns:
            `frames`, `style_codes`, `keyframes` and the keyframes' `recipe`.

        Raises:
            ValueError: names the argument and what it may be; for lists of different lengths, names both.
        """
        check_flag("return_dict", return_dict)
        walk = self._plan(
            base, regions, global_code, nodes, frames=frames, steps=steps, loop=loop, space=space, easing=easing,
            latent_type=latent_type, class_labels=class_labels, strength=strength, truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff, translate=translate, rotate=rotate, noise_mode=noise_mode,
            generator=generator, batch_size=batch_size, output_type=output_type,
        )  # fmt: skip
        pictures: list[Any] = []
        codes = []
        with self.progress_bar(total=walk.timeline.frames) as bar:
            for part, style in self._frames(walk, batch_size, output_type):
                pictures.append(part)
                codes.append(style)
                bar.update(len(style))
        joined: Any = {
            "pil": lambda: [frame for part in pictures for frame in part],
            "np": lambda: np.concatenate(pictures),
        }.get(output_type, lambda: torch.cat(pictures))()
        output = StyleFusionInterpolationPipelineOutput(
            frames=joined,
            style_codes=torch.cat(codes),
            keyframes=walk.timeline.marks(),
            recipe=walk.recipe.to_dict(),
        )
        return output if return_dict else output.to_tuple()

    def stream(self, *args: Any, **kwargs: Any) -> FrameStream:
        """Return an iterator over the frames of the same call, in batches of `batch_size` of the type `output_type`.

        Each batch is computed on demand and not kept, so memory does not grow with the number of frames.

        Args:
            *args, **kwargs: as in a call.

        Returns:
            An iterator over lists of PIL images, arrays, tensors or style codes of `batch_size` frames (the last may
            have fewer), with the number of `frames`, the `keyframes` among them and their `recipe` as attributes.

        Raises:
            ValueError: as in a call, raised immediately rather than with the first frame.

        Example:
            >>> from stylefusion_hf import StyleFusionInterpolationPipeline
            >>> pipe = StyleFusionInterpolationPipeline.from_embedded()
            >>> for batch in pipe.stream(base=[1, 4], frames=5, batch_size=2):
            ...     print(len(batch), batch[0].size)
            2 (128, 128)
            2 (128, 128)
            1 (128, 128)
        """
        call = signature(type(self).__call__).bind(self, *args, **kwargs)  # same arguments and defaults as a call
        call.apply_defaults()
        arguments = {name: value for name, value in call.arguments.items() if name not in ("self", "return_dict")}
        check_flag("return_dict", call.arguments["return_dict"])
        walk = self._plan(**arguments)
        batches = (pictures for pictures, _ in self._frames(walk, arguments["batch_size"], arguments["output_type"]))
        return FrameStream(batches, walk.timeline.frames, walk.timeline.marks(), walk.recipe.to_dict())

    # ------------------------------------------------------------------------------------------------
    # Steps of a call.

    @torch.no_grad()
    def _plan(
        self,
        base: Any,
        regions: Any,
        global_code: Any,
        nodes: Any,
        *,
        frames: int | None,
        steps: int | None,
        loop: bool,
        space: str,
        easing: str,
        latent_type: str,
        class_labels: Any,
        strength: Any,
        truncation_psi: float | None,
        truncation_cutoff: int | None,
        translate: Any,
        rotate: float,
        noise_mode: str,
        generator: Any,
        batch_size: int,
        output_type: str,
    ) -> Walk:
        """Check the whole call and map its keyframes."""
        _steps.check_output_type(output_type, self.generator.config.img_channels)
        check_count("batch_size", batch_size, 2**16)
        if not isinstance(space, str) or space not in _walk.SPACES:
            raise ValueError(f"unknown space {short(space)}: a walk goes through {', '.join(_walk.SPACES)}")
        check_flag("loop", loop)
        if not isinstance(noise_mode, str) or noise_mode not in NOISE_MODES:
            raise ValueError(
                f"noise_mode must be {' or '.join(map(repr, NOISE_MODES))}, got {short(noise_mode)}: different noise"
                " in every frame would flicker"
            )
        labels = parse_labels(class_labels)
        rows, fields = _steps.read_codes(self, base, regions, global_code, nodes, latent_type)
        lengths = {name: len(group) for name, group in rows.items()}
        if labels is not None:
            lengths["class_labels"] = len(labels)
        keyframes = _steps.input_batch(lengths, generator, 1)
        bases = keyframes if isinstance(generator, (list, tuple)) and len(generator) > 1 else 1
        recipe = Recipe(
            num_images=keyframes,
            base=rows["base"] if "base" in rows else _steps.draw_seeds(generator, bases),
            **fields,
            class_labels=labels,
            truncation_psi=self.generator.config.truncation_psi if truncation_psi is None else truncation_psi,
            truncation_cutoff=truncation_cutoff,
            strength=strength,
            translate=translate,
            rotate=rotate,
            noise_mode=noise_mode,
            model=self.model_identity(),
        )
        timeline = _walk.make_timeline(recipe.num_images, frames, steps, loop, easing)
        _walk.check_recipe(recipe, space)
        return _walk.plan_walk(self.generator, self.fusion, recipe, timeline, space, self._execution_device)

    @torch.no_grad()
    def _frames(self, walk: Walk, batch_size: int, output_type: str) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (pictures, style codes), one batch of frames after another."""
        positions = walk.timeline.positions()
        try:
            while batch := list(islice(positions, batch_size)):
                style = _walk.fuse_positions(self.generator, self.fusion, walk, batch, self._execution_device)
                style = _steps.move(self.generator, style, walk.recipe)
                pictures: Any = style
                if output_type != "latent":
                    pictures = _steps.synthesize(self.generator, style, walk.recipe.noise_mode)
                    pictures = self.image_processor.postprocess(pictures, output_type=output_type)
                yield pictures, style
                del pictures, style  # free them before the next batch is computed
        finally:
            self.maybe_free_model_hooks()
