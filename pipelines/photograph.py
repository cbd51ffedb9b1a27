"""StyleFusionPhotoPipeline: photographs in which regions of a face change and everything else stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from stylefusion_hf.core.checks import check_choice, check_flag
from stylefusion_hf.core.codes import LATENT_SPACES, Code
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.hub.loading import HubMixin
from stylefusion_hf.imaging.photographs import Photograph, read_photograph
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.hub_segmenter import HubSegmenter
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.pipelines.inversion_inputs import TENSOR_INPUTS, check_callback
from stylefusion_hf.pipelines.invert import StyleFusionInversionPipeline
from stylefusion_hf.pipelines.output import StyleFusionPhotoPipelineOutput
from stylefusion_hf.pipelines.photo_inputs import Sources, align_face, check_face, list_landmarks, list_sources
from stylefusion_hf.pipelines.photo_outputs import describe_faces, edit_face, to_output_type
from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe
from stylefusion_hf.pipelines.photo_search import align_faces, check_generator, search_codes
from stylefusion_hf.pipelines.refining import check_refinement


class StyleFusionPhotoPipeline(HubMixin, DiffusionPipeline):
    """Changes regions of the face in a photograph of any size, and leaves everything else as it is.

    A call finds the face, aligns it as in FFHQ, searches its code, fuses and edits like `StyleFusionPipeline`, and
    blends what changed back into the photograph. The components are those of `StyleFusionPipeline`.

    Args:
        generator: a `StyleGenerator` of aligned faces, such as a StyleGAN2.
        fusion: the region tree and its fusion nets.
        segmenter: finds the regions that change; without one, what is replaced follows from the change alone.
        encoder: gives the search's first guess.

    Raises:
        ValueError: the components do not fit each other.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf import FusionHierarchy, StyleFusionPhotoPipeline, StyleGAN2Generator
        >>> generator = StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=16, w_dim=16, mapping_layers=2)
        >>> fusion = FusionHierarchy(
        ...     tree="all*(face, hair)", conv_sizes=[8, 8, 8], rgb_sizes=[8, 8], padded_width=8, hidden_width=16
        ... )
        >>> pipe = StyleFusionPhotoPipeline(generator, fusion)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> points = [[40, 50], [60, 50], [50, 60], [42, 70], [58, 70]]  # eyes, nose and corners of the mouth
        >>> photograph = Image.new("RGB", (120, 100), "gray")
        >>> out = pipe(photograph, regions={"hair": 7}, landmarks=points, num_inference_steps=3)
        >>> out.images[0].size
        (120, 100)
    """

    model_cpu_offload_seq = "encoder->segmenter->generator->fusion"
    _optional_components = ["segmenter", "encoder"]  # noqa: RUF012  # diffusers declares it this way
    _callback_tensor_inputs = list(TENSOR_INPUTS)  # noqa: RUF012  # likewise

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
        self._searching: dict[int, StyleFusionInversionPipeline] = {}  # thread running a call -> its inversion
        self._num_timesteps = 0

    @property
    def num_timesteps(self) -> int:
        """The steps of optimization and tuning that the current or last call's search was given."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to stop searching for codes. Set it to True in a callback to stop that call's search, or from a
        thread that runs no call to stop those of all; the photograph is then made of what was found so far."""
        return any(inverter.interrupt for inverter in self._own_searches())

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        for inverter in self._own_searches():
            inverter.interrupt = value

    _interrupt = interrupt  # the name that diffusers uses

    def _own_searches(self) -> list[StyleFusionInversionPipeline]:
        searching = dict(self._searching)
        return [searching[get_ident()]] if get_ident() in searching else list(searching.values())

    # ------------------------------------------------------------------------------------------------
    # Public calls.

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        regions: Mapping[str, Any] | None = None,
        global_code: Any = None,
        nodes: Mapping[str, Any] | None = None,
        *,
        landmarks: Any = None,
        detector: Any = "mtcnn",
        face: int | None = None,
        source_face: int | None = None,
        latent_type: str = "z",
        class_labels: Any = None,
        strength: float | Mapping[str, float] = 1.0,
        edits: Mapping[str, Any] | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = None,
        refine_steps: int = 0,
        noise_mode: str = "none",
        code_space: str = "w+",
        num_inference_steps: int | None = None,
        num_tuning_steps: int = 0,
        start: str | Code | None = None,
        prior_weight: float = 0.003,
        preview_resolution: int | None = None,
        num_final_steps: int = 4,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSOR_INPUTS,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> StyleFusionPhotoPipelineOutput:
        """Change regions of the face in a photograph.

        Codes are those of `StyleFusionPipeline`, and the base is the photograph's own code. A picture among them is
        another photograph, whose face is found, aligned and inverted too. The longest list sets how many pictures are
        made; a single photograph, or a list of one, gives all of them.

        Args:
            image: a photograph: a file, a PIL image or an array (H, W) or (H, W, C), of any size up to 64 megapixels;
                or a list of these.
            regions, global_code, nodes, latent_type, class_labels, strength, edits: as in `StyleFusionPipeline`.
            truncation_psi, truncation_cutoff: likewise; of seeds and z.
            refine_steps: likewise.
            landmarks: (5, 2) or (68, 2), in pixels of the upright photograph, as in `faces.align`; a list has one per
                photograph, None where they must be found.
            detector: finds faces where there are no landmarks: a name or a callable (`landmarks.load_detector`).
            face: which of several faces, by decreasing size from 0; None refuses to choose.
            source_face: the same for photographs given as codes.
            noise_mode: "none" or "const", for the search and for what is drawn.
            code_space: the space of the photographs' codes: "w+", "w" or "s".
            num_inference_steps, num_tuning_steps, start, prior_weight, num_final_steps, batch_size: of the search, as
                in `StyleFusionInversionPipeline`. To change other regions of the same photograph without a search:
                `start=out.codes, landmarks=out.landmarks, num_inference_steps=0`. Without a number, the search takes
                50 steps from an encoder's guess or given codes, 100 from the mean face.
            preview_resolution: likewise; None for the largest preview up to 128 px that resembles the full picture.
            generator: source of random numbers for tuning; None for seed 0.
            callback_on_step_end, callback_on_step_end_tensor_inputs: likewise; `pipe.interrupt = True` stops it.
            output_type: type of `images`: "pil", or for photographs of one size and mode "np" or "pt"; "latent" for
                style codes instead.
            return_dict: False returns a plain tuple of the same values (not reflected in the annotated type).

        Raises:
            ValueError: no face, or several; a photograph whose values could not be kept; names the argument or the
                photograph and what to do.
            OSError: a file cannot be read. ImportError: the detector is not installed.
        """
        _steps.check_output_type(output_type, self.generator.config.img_channels)
        check_flag("return_dict", return_dict)
        check_choice("latent_type", latent_type, LATENT_SPACES)
        self._check_search(noise_mode, callback_on_step_end, callback_on_step_end_tensor_inputs)
        face, source_face = check_face("face", face), check_face("source_face", source_face)
        items = list_sources(image)
        points = list_landmarks(landmarks, len(items))
        sources = Sources(regions, nodes, global_code, latent_type)
        self._check_changes(sources, edits)
        refine_steps = check_refinement(self, refine_steps, any(node for _, node in sources.rows) or bool(edits))

        # Find and align the faces, and search their codes.
        resolution = self.generator.config.resolution
        squares = align_faces(items, points, resolution, detector, face)
        others = sources.align(detector, source_face, resolution)
        inverted = search_codes(
            self, squares, others, callback_on_step_end, latent_type=code_space, start=start, noise_mode=noise_mode,
            num_inference_steps=num_inference_steps, num_tuning_steps=num_tuning_steps, prior_weight=prior_weight,
            num_final_steps=num_final_steps, preview_resolution=preview_resolution, batch_size=batch_size,
            generator=generator, callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        codes = inverted.codes.rows()
        own, borrowed = list(codes[: len(items)]), codes[len(items) :]

        # Fuse, and put back what changed. Faces are drawn from their recipes, which refine them.
        refined = refine_steps if output_type == "latent" else 0
        tuned = {} if inverted.generator is None else {"generator": inverted.generator}
        fuser = StyleFusionPipeline.from_pipe(self, **tuned)
        fused: Any = cast(Any, fuser)(
            own, **sources.replaced(borrowed), latent_type=latent_type, class_labels=class_labels, strength=strength,
            edits=edits, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff, noise_mode=noise_mode,
            refine_steps=refined, output_type="latent",
        )  # fmt: skip
        whole = replace(Recipe.from_dict(fused.recipe), refine_steps=refine_steps)
        recipes: list[dict[str, Any]] = []
        edited, masks = [], []
        for k in range(whole.num_images):
            at = k % len(items)
            photograph, place = read_photograph(items[at], f"image[{at}]"), points[at]
            assert place is not None  # found above
            recipe = PhotoRecipe(photograph.image.size, photograph.sha256(), place, whole.select(k))
            recipes.append(recipe.to_dict())
            if output_type != "latent":
                picture, mask = edit_face(fuser, photograph, recipe, squares[at])
                edited.append(photograph.with_image(picture))
                masks.append(mask)
        self.maybe_free_model_hooks()
        output = StyleFusionPhotoPipelineOutput(
            images=fused.style_codes if output_type == "latent" else to_output_type(edited, output_type),
            photographs=None if output_type == "latent" else edited,
            masks=None if output_type == "latent" else masks,
            **describe_faces(squares, points, inverted),
            recipes=recipes,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        *,
        landmarks: Any = None,
        detector: Any = "mtcnn",
        face: int | None = None,
        noise_mode: str = "none",
        code_space: str = "w+",
        num_inference_steps: int | None = None,
        num_tuning_steps: int = 0,
        start: str | Code | None = None,
        prior_weight: float = 0.003,
        preview_resolution: int | None = None,
        num_final_steps: int = 4,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSOR_INPUTS,
    ) -> StyleFusionPhotoPipelineOutput:
        """Find the face in a photograph and search its code, without changing anything: what a call does first.

        A call with `start=out.codes, landmarks=out.landmarks, num_inference_steps=0` goes on from there.

        Args:
            image and the others: as in a call.

        Returns:
            `images` are the aligned faces, `reconstructions` what the model makes of them; `photographs` and `masks`
            are None, `recipes` is empty.

        Raises:
            ValueError, OSError, ImportError: as in a call.
        """
        self._check_search(noise_mode, callback_on_step_end, callback_on_step_end_tensor_inputs)
        face = check_face("face", face)
        items = list_sources(image)
        points = list_landmarks(landmarks, len(items))
        squares = align_faces(items, points, self.generator.config.resolution, detector, face)
        inverted = search_codes(
            self, squares, [], callback_on_step_end, latent_type=code_space, start=start, noise_mode=noise_mode,
            num_inference_steps=num_inference_steps, num_tuning_steps=num_tuning_steps, prior_weight=prior_weight,
            num_final_steps=num_final_steps, preview_resolution=preview_resolution, batch_size=batch_size,
            generator=generator, callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self.maybe_free_model_hooks()
        faces = describe_faces(squares, points, inverted)
        return StyleFusionPhotoPipelineOutput(images=squares, photographs=None, masks=None, **faces, recipes=[])

    @torch.no_grad()
    def from_recipe(
        self,
        recipe: PhotoRecipe | Mapping[str, Any] | str,
        image: Any,
        *,
        check_model: bool = True,
        check_photograph: bool = True,
    ) -> tuple[Photograph, Image.Image]:
        """Make an edited photograph again, without a search.

        Args:
            recipe: of `recipes` of an output, or its JSON text.
            image: the photograph that it was made of: a file, a PIL image or an array.
            check_model: refuse a recipe that was written with other weights.
            check_photograph: refuse a photograph with other pixels; one of another size is always refused.

        Returns:
            The edited photograph, and how much of each pixel was replaced (mode L).

        Raises:
            ValueError: not a recipe of a photograph (names the field), or of another model or photograph.
        """
        check_flag("check_model", check_model)
        check_flag("check_photograph", check_photograph)
        check_generator(self.generator)
        if isinstance(recipe, str):
            recipe = PhotoRecipe.from_json(recipe)
        elif not isinstance(recipe, PhotoRecipe):
            recipe = PhotoRecipe.from_dict(recipe)
        photograph = read_photograph(image, "image")
        recipe.check(photograph, check_photograph)
        fuser = StyleFusionPipeline.from_pipe(self)
        square = align_face(photograph.rgb(), recipe.landmarks, self.generator.config.resolution, photograph.name)
        picture, mask = edit_face(fuser, photograph, recipe, square, check_model)
        self.maybe_free_model_hooks()
        return photograph.with_image(picture), mask

    # ------------------------------------------------------------------------------------------------
    # Steps of a call.

    def _check_search(self, noise_mode: str, callback: Any, inputs: Any) -> None:
        check_choice("noise_mode", noise_mode, ("none", "const"))
        check_callback(callback, inputs)
        check_generator(self.generator)

    def _check_changes(self, sources: Sources, edits: Any) -> None:
        """Raise ValueError for a call that changes nothing, or names no node, before the search."""
        tree = self.fusion.tree
        for argument, node in sources.rows:
            if node or argument != "global_code":
                _steps.resolve(tree, argument, node)
        StyleFusionPipeline._edits(self, {} if edits is None else edits)
        if not sources.rows and not edits:
            raise ValueError("nothing to change: give codes in regions, nodes or global_code, or edits")
