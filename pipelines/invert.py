"""StyleFusionInversionPipeline: real pictures to codes, by encoder, optimization and tuning of the generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import nn

from stylefusion_hf.core.checks import check_count, check_flag, check_number
from stylefusion_hf.core.codes import Code
from stylefusion_hf.hub.loading import HubMixin
from stylefusion_hf.imaging.features import extractor
from stylefusion_hf.imaging.images import Fit
from stylefusion_hf.inversion.optimization import CodePrior, Interrupted, Objective, tune
from stylefusion_hf.inversion.previews import find_preview, optimize_on_previews
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.style_generator import StyleGenerator, check_up_to
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.inversion_inputs import (
    TENSOR_INPUTS,
    InversionOptions,
    check_callback,
    check_generators,
    check_settings,
    replaced_latents,
    start_codes,
    to_style,
)
from stylefusion_hf.pipelines.inversion_steps import in_place, leave_inference_mode, measure, pixel_weights
from stylefusion_hf.pipelines.output import OutputType, StyleFusionInversionPipelineOutput
from stylefusion_hf.pipelines.targets import read_targets


class StyleFusionInversionPipeline(HubMixin, DiffusionPipeline):
    """Finds the codes of given pictures, so that real pictures can be fused, edited and walked between.

    The components are those of `StyleFusionPipeline`, whose folders it loads; all but the generator are optional.

    Args:
        generator: a `StyleGenerator`, such as a StyleGAN2.
        fusion: not used; kept so that converting between pipelines loses no component.
        segmenter: its features measure how similar pictures look (without one: edges at several scales), and it finds
            the regions of `region_weights`.
        encoder: gives the initial guess in one pass; without one, optimization starts from the mean code.

    Raises:
        ValueError: the components do not fit each other.

    Example:
        >>> import torch
        >>> from stylefusion_hf import StyleFusionInversionPipeline, StyleGAN2Generator
        >>> generator = StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=16, w_dim=16, mapping_layers=2)
        >>> pipe = StyleFusionInversionPipeline(generator)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> out = pipe(torch.rand(2, 3, 8, 8), num_inference_steps=3)
        >>> out.codes.space, tuple(out.codes.tensor.shape)
        ('w+', (2, 4, 16))
    """

    model_cpu_offload_seq = "encoder->segmenter->generator->fusion"
    _optional_components = ["fusion", "segmenter", "encoder"]  # noqa: RUF012  # diffusers declares it this way
    _callback_tensor_inputs = list(TENSOR_INPUTS)  # noqa: RUF012  # likewise

    def __init__(
        self,
        generator: StyleGenerator,
        fusion: Any = None,
        segmenter: Any = None,
        encoder: Any = None,
    ):
        super().__init__()
        _steps.check_kind("generator", generator)
        if fusion is not None:
            _steps.check_components(generator, fusion, segmenter)
        self.register_modules(generator=generator, fusion=fusion, segmenter=segmenter, encoder=encoder)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)
        self._num_timesteps = 0
        self._stopped: dict[int, bool] = {}  # thread running a call -> whether to stop that call

    @property
    def num_timesteps(self) -> int:
        """The steps of optimization and tuning that the current or last call was given."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to stop. Set it to True in a callback to stop that call, or from a thread that runs no call to stop
        all of them; a stopped call returns what it has found so far."""
        stopped = dict(self._stopped)
        return stopped.get(get_ident(), any(stopped.values()))

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        for thread in [get_ident()] if get_ident() in self._stopped else list(self._stopped):
            self._stopped[thread] = value

    _interrupt = interrupt  # the name that diffusers uses

    # ------------------------------------------------------------------------------------------------
    # The call.

    @overload
    def __call__(
        self, image: Any, *, output_type: Literal["pil"] = "pil", **options: Unpack[InversionOptions]
    ) -> StyleFusionInversionPipelineOutput[list[Image.Image]]: ...
    @overload
    def __call__(
        self, image: Any, *, output_type: Literal["np"], **options: Unpack[InversionOptions]
    ) -> StyleFusionInversionPipelineOutput[np.ndarray]: ...
    @overload
    def __call__(
        self, image: Any, *, output_type: Literal["pt", "latent"], **options: Unpack[InversionOptions]
    ) -> StyleFusionInversionPipelineOutput[torch.Tensor]: ...
    @leave_inference_mode
    def __call__(
        self,
        image: Any,
        *,
        latent_type: Literal["w+", "w", "s"] = "w+",
        num_inference_steps: int = 0,
        num_tuning_steps: int = 0,
        start: str | Code | None = None,
        fit: Fit = "refuse",
        masks: Any = None,
        region_weights: Mapping[str, float] | None = None,
        pixel_weight: float = 1.0,
        feature_weight: float = 0.1,
        prior_weight: float = 0.003,
        learning_rate: float = 0.2,
        tuning_learning_rate: float = 1e-3,
        locality_weight: float = 0.1,
        tolerance: float = 1e-3,
        patience: int = 25,
        noise_mode: Literal["none", "const"] = "none",
        batch_size: int | None = None,
        preview_resolution: int | None = None,
        num_final_steps: int = 10,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSOR_INPUTS,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> StyleFusionInversionPipelineOutput[Any]:
        """Find codes that reproduce the given pictures as closely as the generator can.

        Without steps, the encoder's guess is returned. `num_inference_steps` improve each picture's code;
        `num_tuning_steps` then tune a copy of the generator at these codes (pivotal tuning, arXiv 2106.05744).

        Args:
            image: a PIL image, a file or a folder of pictures (sorted by name), an array (B, H, W, C) or tensor
                (B, C, H, W) in [0, 1], or a list of any of these.
            latent_type: the space of the codes: "w+", "w" (closer to the generator's own codes, farther from the
                picture) or "s" (the opposite).
            num_inference_steps: maximum number of optimization steps; a picture whose loss stops falling stops
                earlier.
            num_tuning_steps: number of pivotal tuning steps.
            start: "encoder", "mean", or codes to start from; None for the encoder if there is one, else the mean.
            fit: how to handle pictures of another aspect ratio than the generator's, mostly those that are not square:
                "refuse" (an error), "crop" (the middle) or "pad".
                Align faces with `stylefusion_hf.imaging.faces.align` first.
            masks: (B, H, W), not negative, at the generator's resolution: the weight of each pixel.
            region_weights: weight of each region of the segmenter, such as {"hair": 4, "background": 0}; 1 for the
                others. Multiplied with `masks` if both are given.
            pixel_weight: weight of the mean squared pixel error (pixels in [-1, 1]).
            feature_weight: weight of the feature distance (`features.map_distance`).
            prior_weight: weight of the codes' distance from the generator's own codes
                (`inversion.optimization.CodePrior`): higher keeps them editable, lower brings them closer to the
                picture.
            learning_rate: learning rate of the codes, in units of their standard deviation.
            tuning_learning_rate: learning rate of the synthesis network's weights.
            locality_weight: weight that keeps the pictures of other codes unchanged during tuning.
            tolerance, patience: a picture's optimization ends when its loss has not fallen by the fraction `tolerance`
                within `patience` steps.
            noise_mode: "none" (compare pictures without the stored noise) or "const".
            batch_size: number of pictures optimized together; None chooses by resolution.
            preview_resolution: height of the pictures that all but the final steps compare, one of
                `generator.picture_sizes`. None for the full size up to 256 px; of a larger generator the largest
                preview up to 256 px that resembles the full picture, if there is one.
            num_final_steps: with previews, the last so many of `num_inference_steps` compare full pictures, at a tenth
                of the learning rate.
            generator: source of random numbers for tuning; None for seed 0. A list has one per picture.
            callback_on_step_end: called as f(pipe, step, step, {"latents": codes, "losses": (B,)}) after each step,
                the first being 0; `pipe.num_timesteps` is how many there are at most.
                "latents" in the returned dict replaces the codes, `pipe.interrupt = True` stops. Tuning steps, which
                follow the optimization steps, only give the losses of their batch.
            callback_on_step_end_tensor_inputs: which of "latents" and "losses" the dict contains.
            output_type: type of the reconstructions: "pil", "np", "pt", or "latent" for the style codes instead.
            return_dict: False returns a plain tuple of the same values (not reflected in the annotated type).

        Returns:
            `images`, `codes`, `mse`, `feature_distance`, `steps` and, after tuning, `generator`: the tuned copy, to be
            used as `StyleFusionPipeline.from_pipe(pipe, generator=out.generator)`.

        Raises:
            ValueError: names the argument and what it may be, or the picture that cannot be used.
            OSError: a file cannot be read.
            FloatingPointError: the learning rate is too high.
        """
        _steps.check_output_type(output_type, self.generator.config.img_channels)
        check_flag("return_dict", return_dict)
        num_inference_steps, num_tuning_steps, patience, batch_size = check_settings(
            latent_type, fit, noise_mode, num_inference_steps, num_tuning_steps, patience, batch_size
        )
        num_final_steps = check_count("num_final_steps", num_final_steps, 10**6, least=0)
        if preview_resolution is not None:
            check_up_to(preview_resolution, self.generator.picture_sizes, "preview_resolution")
        numbers = {"pixel_weight": pixel_weight, "feature_weight": feature_weight, "prior_weight": prior_weight}
        numbers |= {"learning_rate": learning_rate, "tuning_learning_rate": tuning_learning_rate}
        for name, number in (numbers | {"locality_weight": locality_weight, "tolerance": tolerance}).items():
            check_number(name, number, 0, 1e6)
        check_generators(generator)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)

        self._stopped[get_ident()] = False
        device = self._execution_device
        targets = read_targets(image, self.generator, fit).to(device)
        check_generators(generator, len(targets))
        self._num_timesteps = num_inference_steps + num_tuning_steps
        batch = batch_size or chunk_size(self.generator.mean_side, 16)
        # Encoding is one call of its model; the other steps use their models many times, hence these in place.
        network, segmenter = (in_place(model, device) for model in (self.generator, self.segmenter))
        weight = pixel_weights(masks, region_weights, targets, segmenter, chunk_size(self.generator.mean_side, 64))
        codes = start_codes(network, self.encoder, start, targets, latent_type, batch)
        maps = extractor(segmenter)
        taken = torch.zeros(len(targets), dtype=torch.long)
        done = 0

        def objective(part: slice) -> Objective:
            weights = None if weight is None else weight[part]
            return Objective(maps, targets[part], weights, pixel_weight, feature_weight)

        def run_callback(step: int, **tensors: torch.Tensor) -> Any:
            if callback_on_step_end is None:
                return None
            given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs if name in tensors}
            replaced = callback_on_step_end(self, step, step, given)
            if self._interrupt:
                raise Interrupted
            return replaced_latents(replaced, tensors.get("latents"))

        parts = [slice(i, i + batch) for i in range(0, len(targets), batch)]
        if num_inference_steps:
            prior = CodePrior.of(network)
            preview = find_preview(network, preview_resolution, noise_mode)
            with self.progress_bar(total=num_inference_steps * len(parts)) as bar:

                def on_step(step: int, latents: torch.Tensor, losses: torch.Tensor) -> Any:
                    bar.update()
                    return run_callback(step - 1, latents=latents, losses=losses)

                for number, part in enumerate(parts):
                    found = optimize_on_previews(
                        network,
                        codes[part],
                        latent_type,
                        objective(part),
                        prior,
                        steps=num_inference_steps,
                        preview=preview,
                        final_steps=num_final_steps,
                        learning_rate=learning_rate,
                        prior_weight=prior_weight,
                        tolerance=tolerance,
                        patience=patience,
                        noise_mode=noise_mode,
                        on_step=on_step,
                    )
                    codes[part], taken[part] = found.codes, found.steps.cpu()
                    bar.update((number + 1) * num_inference_steps - bar.n)  # steps skipped by an early stop
                    if self._interrupt:
                        break
            done = num_inference_steps
        style = to_style(network, codes, latent_type)
        tuned = None
        if num_tuning_steps and not self._interrupt:
            seeds: int | Sequence[int] = 0
            if isinstance(generator, (list, tuple)) and len(generator) > 1:
                seeds = _steps.draw_seeds(generator, len(targets))
            elif generator is not None:
                seeds = _steps.draw_seeds(generator, 1)[0]
            with self.progress_bar(total=num_tuning_steps) as bar:

                def on_tuning(step: int, losses: torch.Tensor) -> None:
                    bar.update()
                    run_callback(done + step - 1, losses=losses)

                tuned = network = tune(
                    network,
                    style,
                    objective(slice(None)),
                    steps=num_tuning_steps,
                    learning_rate=tuning_learning_rate,
                    locality_weight=locality_weight,
                    batch_size=min(batch, 4),
                    noise_mode=noise_mode,
                    seed=seeds,
                    on_step=on_tuning,
                )
        made, mse, distances = measure(network, style, targets, maps, noise_mode, batch)
        images: Any = style
        if output_type != "latent":
            images = self.image_processor.postprocess(made, output_type=output_type)
        if tuned is not None and tuned.dtype != self.generator.dtype:
            tuned = nn.Module.to(tuned, self.generator.dtype)  # diffusers' own `to` warns
        self.maybe_free_model_hooks()
        output = StyleFusionInversionPipelineOutput(
            images=images,
            codes=Code(codes, latent_type),
            mse=mse,
            feature_distance=distances,
            steps=taken,
            generator=tuned,
        )
        return output if return_dict else output.to_tuple()
