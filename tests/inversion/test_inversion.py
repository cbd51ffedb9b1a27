"""Inversion: what is optimized, by hand and through the pipeline, on tiny random models."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stylefusion_hf import (
    Code,
    ImageEncoder,
    MobileStyleGANGenerator,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
)
from stylefusion_hf.imaging.features import edge_maps, map_distance
from stylefusion_hf.inversion import previews
from stylefusion_hf.inversion.optimization import CodePrior, Interrupted, Objective, optimize, tune
from stylefusion_hf.inversion.previews import find_preview, optimize_on_previews
from stylefusion_hf.models.loading import weights_sha256
from stylefusion_hf.pipelines import invert
from tests.tiny import (
    NUM_WS,
    RESOLUTION,
    STYLE_DIM,
    W_DIM,
    draw,
    tiny_encoder,
    tiny_generator,
    tiny_mobile_generator,
    tiny_pipeline,
    tiny_segmenter,
)


@pytest.fixture(scope="module")
def generator() -> Any:
    return tiny_generator().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(generator: Any) -> CodePrior:
    return CodePrior.of(generator, samples=2048)


def codes_of(generator: Any, count: int, seed: int = 0) -> torch.Tensor:
    return generator.mapping(draw(count, W_DIM, seed=seed))


def pictures(generator: Any, codes: torch.Tensor) -> torch.Tensor:
    return generator.synthesis(generator.to_style(codes), noise_mode="none")


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())


# ----------------------------------------------------------------------------------------------------
# How far apart, and how likely.


def test_the_distance_of_maps_is_zero_for_the_same_and_counts_what_is_weighed() -> None:
    a, b = draw(2, 3, 16, 16), draw(2, 3, 16, 16, seed=1)
    assert map_distance(edge_maps(a), edge_maps(a)).tolist() == [0, 0]
    assert (map_distance(edge_maps(a), edge_maps(b)) > 0.5).all()
    b[:, :, :, :8] = a[:, :, :, :8]
    left = torch.zeros(2, 16, 16)
    left[:, :, :4] = 1
    assert map_distance(edge_maps(a), edge_maps(b), left).max() < 1e-6  # the halves touch nowhere under the mask
    assert (map_distance(edge_maps(a), edge_maps(b), 1 - left) > 0.2).all()


def test_the_prior_is_one_for_samples_and_grows_with_the_distance(generator: Any, prior: CodePrior) -> None:
    w = codes_of(generator, 512, seed=3)
    assert prior.distance(w, "w").mean() == pytest.approx(1, abs=0.1)
    rows = w[:, None].expand(-1, NUM_WS, -1)
    assert torch.allclose(prior.distance(rows, "w+"), prior.distance(w, "w"), rtol=1e-4)
    assert prior.distance(generator.to_style(w), "s").mean() == pytest.approx(1, abs=0.1)
    far = generator.w_avg + 3 * (w - generator.w_avg)
    assert prior.distance(far, "w").mean() > 2
    assert prior.between(w, w).max() == 0
    assert prior.between(w, w.roll(1, 0)).mean() == pytest.approx(2, abs=0.3)


def test_objectives_refuse_masks_and_weights_that_say_nothing() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8\), got \(1, 8, 8\)"):
        Objective(edge_maps, x, torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="above 0 somewhere"):
        Objective(edge_maps, x, torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="not both 0"):
        Objective(edge_maps, x, None, 0, 0)


# ----------------------------------------------------------------------------------------------------
# Optimization.


@pytest.mark.parametrize("space", ["w", "w+", "s"])
def test_codes_of_samples_are_found_again(generator: Any, prior: CodePrior, space: str) -> None:
    targets = pictures(generator, codes_of(generator, 2, seed=5))
    w = generator.w_avg.expand(2, -1)
    start = {"w": w, "w+": w[:, None].expand(-1, NUM_WS, -1), "s": generator.to_style(w)}[space]
    objective, before = Objective(edge_maps, targets), start.clone()
    with torch.no_grad():
        first = objective(pictures(generator, w))
    found = optimize(generator, start, space, objective, prior, steps=60, learning_rate=0.2, prior_weight=1e-4)
    assert torch.equal(start, before)
    assert found.codes.shape == start.shape
    assert (found.loss < 0.5 * first).all()


def test_each_picture_is_optimised_as_if_it_were_alone(generator: Any, prior: CodePrior) -> None:
    targets = pictures(generator, codes_of(generator, 3, seed=5))
    start = generator.w_avg.expand(3, -1)
    settings: dict[str, Any] = {"steps": 30, "tolerance": 0.2, "patience": 3, "learning_rate": 0.1}
    together = optimize(generator, start, "w", Objective(edge_maps, targets), prior, **settings)
    for i in range(3):
        alone = optimize(generator, start[:1], "w", Objective(edge_maps, targets[i : i + 1]), prior, **settings)
        assert alone.steps[0] == together.steps[i]
        assert torch.allclose(alone.codes[0], together.codes[i], atol=1e-4)
    assert (together.steps < 30).any()  # and the patience ends some before others


def test_no_step_returns_the_start(generator: Any, prior: CodePrior) -> None:
    start = codes_of(generator, 2)
    found = optimize(generator, start, "w", Objective(edge_maps, pictures(generator, start)), prior, steps=0)
    assert torch.equal(found.codes, start)
    assert found.steps.tolist() == [0, 0]


def test_the_best_code_is_kept_not_the_last(generator: Any, prior: CodePrior) -> None:
    start = codes_of(generator, 1)
    objective = Objective(edge_maps, pictures(generator, start))
    found = optimize(generator, start, "w", objective, prior, steps=8, learning_rate=5.0, prior_weight=0)
    assert torch.equal(found.codes, start)  # nothing is better than the true code


def test_steps_can_be_watched_changed_and_stopped(generator: Any, prior: CodePrior) -> None:
    targets = pictures(generator, codes_of(generator, 1, seed=5))
    truth, seen = codes_of(generator, 1, seed=5), []

    def on_step(step: int, codes: torch.Tensor, losses: torch.Tensor) -> Any:
        seen.append((step, float(losses[0])))
        if step == 6:
            raise Interrupted
        return truth if step == 3 else None

    settings: dict[str, Any] = {"steps": 50, "prior_weight": 0.0, "learning_rate": 0.01, "on_step": on_step}
    found = optimize(generator, generator.w_avg[None], "w", Objective(edge_maps, targets), prior, **settings)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[3][1] < 0.2 * seen[2][1]  # from the code that was given
    assert found.loss[0] <= min(loss for _, loss in seen)


def test_an_exploding_run_is_one_error(generator: Any, prior: CodePrior) -> None:
    objective = Objective(edge_maps, pictures(generator, codes_of(generator, 1)))
    with pytest.raises(FloatingPointError, match="lower the learning rate, 1e\\+30"):
        optimize(generator, generator.w_avg[None], "w", objective, prior, steps=5, learning_rate=1e30)


def test_what_a_mask_hides_does_not_count(generator: Any, prior: CodePrior) -> None:
    start = codes_of(generator, 1)
    targets = pictures(generator, start)
    targets[..., RESOLUTION // 2 :] = 1.0  # the right half is spoilt
    mask = torch.zeros(1, RESOLUTION, RESOLUTION)
    mask[..., : RESOLUTION // 2] = 1
    hidden = Objective(edge_maps, targets, mask, feature_weight=0)
    assert hidden(pictures(generator, start))[0] < 1e-10
    assert Objective(edge_maps, targets)(pictures(generator, start))[0] > 0.01


# ----------------------------------------------------------------------------------------------------
# Tuning.


def test_tuning_improves_a_copy_and_leaves_the_rest_alone(generator: Any) -> None:
    pivots = generator.to_style(codes_of(generator, 2))
    targets = draw(2, 3, RESOLUTION, RESOLUTION, seed=9).clamp(-1, 1)
    objective, before = Objective(edge_maps, targets), weights_sha256(generator)
    free = tune(generator, pivots, objective, steps=20, learning_rate=0.02, locality_weight=0)
    assert weights_sha256(generator) == before
    assert not any(p.requires_grad for p in generator.parameters())
    with torch.no_grad():
        old, new = (objective(net.synthesis(pivots, noise_mode="none")).mean() for net in (generator, free))
    assert new < 0.9 * old
    assert torch.equal(free.affine_weight, generator.affine_weight)  # codes keep their meaning
    assert torch.equal(free.mapping(draw(1, W_DIM)), generator.mapping(draw(1, W_DIM)))
    held = tune(generator, pivots, objective, steps=20, learning_rate=0.02, locality_weight=10)
    other = generator.to_style(codes_of(generator, 8, seed=4))
    with torch.no_grad():
        plain, moved, kept = (net.synthesis(other) for net in (generator, free, held))
    assert (kept - plain).square().mean() < 0.5 * (moved - plain).square().mean()


def test_tuning_takes_turns_with_more_pictures_than_fit(generator: Any) -> None:
    pivots = generator.to_style(codes_of(generator, 3))
    seen: list[int] = []
    tune(
        generator,
        pivots,
        Objective(edge_maps, torch.zeros(3, 3, RESOLUTION, RESOLUTION)),
        steps=3,
        batch_size=2,
        on_step=lambda step, losses: seen.append(len(losses)),
    )
    assert seen == [2, 2, 2]


# ----------------------------------------------------------------------------------------------------
# The encoder.


def test_a_new_encoder_gives_the_mean_code_for_every_picture() -> None:
    encoder = ImageEncoder(NUM_WS, W_DIM, RESOLUTION, channels=[8, 8], groups=4, reduced=2, features=16)
    w = draw(64, W_DIM) * torch.linspace(0.1, 3, W_DIM) + 2
    encoder.fit_axes(w)
    codes = encoder.encode(draw(2, 3, RESOLUTION, RESOLUTION))
    assert codes.shape == (2, NUM_WS, W_DIM)
    assert torch.allclose(codes, w.mean(0).expand_as(codes), atol=1e-5)
    assert torch.allclose(encoder.w_axes.t() @ encoder.w_axes, w.t().cov(), atol=1e-3)


def test_encoders_take_any_size_and_any_place_in_a_batch() -> None:
    encoder = tiny_encoder()
    images = draw(3, 3, RESOLUTION, RESOLUTION)
    with torch.no_grad():
        codes = encoder(images).latents
        assert torch.allclose(encoder.encode(images[1:2]), codes[1:2], atol=1e-5)
        large = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
        assert torch.allclose(encoder.encode(large), codes, atol=0.2)
        assert torch.equal(encoder(images, return_dict=False)[0], codes)
    with pytest.raises(ValueError, match=r"expected images \(batch, 3, H, W\), got \(3, 8, 8\)"):
        encoder.encode(images[0, :, :8, :8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [8]}, "at least two widths"),
        ({"channels": [8, 9]}, "multiples of groups=4"),
        ({"resolution": 31}, "multiple of 2"),
        ({"num_ws": 0}, "at least 1, got 0"),
    ],
)
def test_encoders_refuse_shapes_that_cannot_be(changes: dict, message: str) -> None:
    config: dict[str, Any] = {"channels": [8, 8], "groups": 4, "resolution": 32}
    with pytest.raises(ValueError, match=message):
        ImageEncoder(**(config | changes))


# ----------------------------------------------------------------------------------------------------
# The pipeline.


@pytest.fixture(scope="module")
def pipe() -> StyleFusionInversionPipeline:
    base = tiny_pipeline(segmenter=True)
    made = StyleFusionInversionPipeline.from_pipe(base, encoder=tiny_encoder())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def images(generator: Any) -> torch.Tensor:
    return pictures(generator, codes_of(generator, 2, seed=7)).clamp(-1, 1)


def test_the_docstring_runs() -> None:
    assert doctest.testmod(invert).failed == 0
    assert "pipe(torch.rand" in (invert.StyleFusionInversionPipeline.__doc__ or "")


def test_without_steps_the_encoder_decides(pipe: Any, images: torch.Tensor) -> None:
    out = pipe((images + 1) / 2)
    with torch.no_grad():
        assert torch.allclose(out.codes.tensor, pipe.encoder.encode(images), atol=1e-4)
    assert out.codes.space == "w+" and len(out.images) == 2 and out.generator is None
    assert out.steps.tolist() == [0, 0]
    again = StyleFusionPipeline.from_pipe(pipe)(base=out.codes, noise_mode="none").images
    assert np.abs(np.asarray(again[0], int) - np.asarray(out.images[0], int)).max() <= 1


@pytest.mark.parametrize("space", ["w", "w+", "s"])
def test_steps_come_nearer_in_every_space(pipe: Any, images: torch.Tensor, space: str) -> None:
    x = (images + 1) / 2
    guess = pipe(x, latent_type=space)
    found = pipe(x, latent_type=space, num_inference_steps=25, learning_rate=0.2, prior_weight=0)
    shape = {"w": (2, W_DIM), "w+": (2, NUM_WS, W_DIM), "s": (2, STYLE_DIM)}[space]
    assert found.codes.space == space and tuple(found.codes.tensor.shape) == shape
    assert (found.mse < guess.mse).all()
    made = torch.from_numpy(np.stack(pipe(x, start=found.codes, latent_type=space, output_type="np").images))
    assert torch.allclose(((made.permute(0, 3, 1, 2) * 2 - 1) - images).square().mean((1, 2, 3)), found.mse, atol=1e-5)


def test_every_form_of_a_picture_gives_the_same_code(pipe: Any, images: torch.Tensor, tmp_path: Path) -> None:
    one = pil(images[0])
    one.save(tmp_path / "a.png")
    pil(images[1]).save(tmp_path / "b.png")
    array = np.asarray(one).astype(np.float32) / 255
    forms = [one, str(tmp_path / "a.png"), tmp_path / "a.png", array, array[None], [one]]
    forms += [torch.from_numpy(array).permute(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1)[None]]
    first = pipe(forms[0]).codes.tensor
    for form in forms[1:]:
        assert torch.allclose(pipe(form).codes.tensor, first, atol=1e-5)
    both = pipe(tmp_path).codes.tensor
    assert len(both) == 2 and torch.allclose(both[:1], first, atol=1e-5)
    assert len(pipe([one, tmp_path]).codes) == 3


def test_tuning_gives_a_generator_that_fusion_can_use(pipe: Any, images: torch.Tensor) -> None:
    before = weights_sha256(pipe.generator)
    x = (images + 1) / 2
    plain = pipe(x, num_inference_steps=2)
    tuned = pipe(x, num_inference_steps=2, num_tuning_steps=15, tuning_learning_rate=0.01)
    assert weights_sha256(pipe.generator) == before
    assert tuned.mse.mean() < plain.mse.mean()
    fuser = StyleFusionPipeline.from_pipe(pipe, generator=tuned.generator)
    out = fuser(base=tuned.codes.rows()[0], noise_mode="none")
    assert np.abs(np.asarray(out.images[0], int) - np.asarray(tuned.images[0], int)).max() <= 1
    assert out.recipe["model"]["sha256"]["generator"] == weights_sha256(tuned.generator)
    other = torch.Generator().manual_seed(3)
    drawn = pipe(x, num_tuning_steps=2, generator=other).generator
    assert weights_sha256(drawn) != weights_sha256(pipe(x, num_tuning_steps=2).generator)


def test_regions_and_masks_weigh(pipe: Any, images: torch.Tensor) -> None:
    x = (images + 1) / 2
    names = list(pipe.segmenter.config.regions)
    same = pipe(x, num_inference_steps=3, region_weights=dict.fromkeys(names, 2.0)).codes.tensor
    plain = pipe(x, num_inference_steps=3).codes.tensor
    assert torch.allclose(same, plain, atol=1e-3)
    mask = torch.ones(RESOLUTION, RESOLUTION)
    mask[: RESOLUTION // 2] = 0
    masked = pipe(x, num_inference_steps=3, masks=mask).codes.tensor
    assert not torch.allclose(masked, plain, atol=1e-3)


def test_callbacks_see_steps_and_can_stop(pipe: Any, images: torch.Tensor) -> None:
    seen = []

    def watch(p: Any, step: int, timestep: int, given: dict) -> dict:
        seen.append((step, sorted(given)))
        assert p.num_timesteps == (15 if len(seen) and sorted(given) == ["latents", "losses"] else 2)
        if step == 2:
            p.interrupt = True
        return given

    out = pipe((images[:1] + 1) / 2, num_inference_steps=10, num_tuning_steps=5, callback_on_step_end=watch)
    assert seen == [(k, ["latents", "losses"]) for k in (0, 1, 2)]
    assert out.generator is None and len(out.images) == 1
    seen.clear()
    call: dict[str, Any] = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["losses"]}
    pipe((images[:1] + 1) / 2, num_inference_steps=1, num_tuning_steps=1, **call)
    assert seen == [(0, ["losses"]), (1, ["losses"])]


def test_a_list_of_generators_tunes_each_picture_as_alone(images: torch.Tensor) -> None:
    alone = StyleFusionInversionPipeline(tiny_generator())
    alone.set_progress_bar_config(disable=True)
    x = (images + 1) / 2
    draws = [torch.Generator().manual_seed(k) for k in (3, 4)]
    listed = alone(x, num_tuning_steps=2, generator=draws).generator
    again = alone(x, num_tuning_steps=2, generator=[torch.Generator().manual_seed(k) for k in (3, 4)]).generator
    single = alone(x, num_tuning_steps=2, generator=[torch.Generator().manual_seed(3)]).generator
    plain = alone(x, num_tuning_steps=2, generator=torch.Generator().manual_seed(3)).generator
    assert weights_sha256(listed) == weights_sha256(again) != weights_sha256(single) == weights_sha256(plain)
    with pytest.raises(ValueError, match="list of length 3 for 2 pictures"):
        alone(x, num_tuning_steps=1, generator=[torch.Generator()] * 3)


def test_outputs_come_in_every_form(pipe: Any, images: torch.Tensor) -> None:
    x = (images + 1) / 2
    shapes = {"np": (2, RESOLUTION, RESOLUTION, 3), "pt": (2, 3, RESOLUTION, RESOLUTION), "latent": (2, STYLE_DIM)}
    for kind, shape in shapes.items():
        assert tuple(pipe(x, output_type=kind).images.shape) == shape
    found, listed = pipe(x, output_type="pt"), pipe(x, output_type="pt", return_dict=False)
    assert torch.equal(found.images, listed[0]) and torch.equal(found.mse, listed[2])


def test_only_the_generator_is_needed(images: torch.Tensor) -> None:
    alone = StyleFusionInversionPipeline(tiny_generator())
    alone.set_progress_bar_config(disable=True)
    x = (images + 1) / 2
    guess, found = alone(x), alone(x, num_inference_steps=15, learning_rate=0.2)
    assert torch.equal(guess.codes.tensor, alone.generator.w_avg.expand(2, NUM_WS, -1))
    assert (found.mse < guess.mse).all()


def test_half_precision_weights_are_optimised_in_full(images: torch.Tensor) -> None:
    half = StyleFusionInversionPipeline(tiny_generator().to(torch.bfloat16))
    half.set_progress_bar_config(disable=True)
    out = half((images + 1) / 2, num_inference_steps=3, num_tuning_steps=1)
    assert out.codes.tensor.dtype == torch.float32
    assert half.generator.dtype == out.generator.dtype == torch.bfloat16


def test_saved_pipelines_load_as_each_other(pipe: Any, tmp_path: Path, images: torch.Tensor) -> None:
    StyleFusionPipeline.from_pipe(pipe).save_pretrained(tmp_path)
    loaded = StyleFusionInversionPipeline.from_pretrained(tmp_path)
    x = (images + 1) / 2
    assert torch.equal(loaded(x).codes.tensor, pipe(x).codes.tensor)
    assert isinstance(loaded.encoder, ImageEncoder)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "space": ({"latent_type": "z"}, "latent_type must be one of w, w\\+, s for inverted pictures, got 'z'"),
    "steps": ({"num_inference_steps": -1}, "num_inference_steps is an integer from 0"),
    "tuning steps": ({"num_tuning_steps": 1.5}, "num_tuning_steps is an integer"),
    "start": ({"start": "guess"}, 'start must be "encoder", "mean" or a Code, got \'guess\''),
    "start's batch": ({"start": Code(torch.zeros(3, W_DIM), "w")}, "start has 3 codes for 2 pictures"),
    "start's space": ({"start": Code(torch.zeros(1, STYLE_DIM), "s")}, "choose latent_type='s'"),
    "noise": ({"noise_mode": "random"}, "noise_mode of an inversion must be none or const"),
    "rate": ({"learning_rate": float("nan")}, "learning_rate is a number"),
    "prior": ({"prior_weight": -1}, "prior_weight is a number from 0"),
    "weights": ({"pixel_weight": 0, "feature_weight": 0, "num_inference_steps": 1}, "not both 0"),
    "region": ({"region_weights": {"beard": 1}}, "no region 'beard'; the segmenter knows"),
    "region's weight": ({"region_weights": {"hair": -1}}, r"region_weights\['hair'\] is a number from 0"),
    "masks": ({"masks": torch.ones(3, 8, 8)}, r"masks must have the shape \(2, 32, 32\), got \(3, 8, 8\)"),
    "output": ({"output_type": "jpeg"}, "unknown output_type 'jpeg'"),
    "callback": ({"callback_on_step_end_tensor_inputs": ["noise"]}, "names from latents, losses, got 'noise'"),
    "batch": ({"batch_size": 0}, "batch_size is an integer from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(pipe: Any, images: torch.Tensor, case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        pipe((images + 1) / 2, **call)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "empty list"),
        (7, "got int"),
        (torch.zeros(2, 3, 8, 8), r"expected a tensor \(batch, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "floating-point numbers in \\[0, 1\\]"),
        (torch.full((1, 3, 32, 32), -0.5), "numbers must be in \\[0, 1\\], got -0.5"),
        (torch.full((1, 3, 32, 32), float("nan")), "numbers must be in \\[0, 1\\]"),
        (Image.new("RGB", (40, 32)), "40 x 32 pixels, and the model takes squares"),
        (Image.new("RGB", (1, 1)), "too small"),
    ],
)
def test_bad_pictures_are_refused(pipe: Any, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(image)


def test_what_is_missing_is_named(images: torch.Tensor, tmp_path: Path) -> None:
    alone = StyleFusionInversionPipeline(tiny_generator())
    x = (images + 1) / 2
    with pytest.raises(ValueError, match="this pipeline has no encoder"):
        alone(x, start="encoder")
    with pytest.raises(ValueError, match="region_weights need a segmenter"):
        alone(x, region_weights={"hair": 2})
    with pytest.raises(OSError, match="nothing.png"):
        alone(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="no pictures in"):
        alone(tmp_path)
    fitted = alone(Image.new("RGB", (40, 32)), fit="crop")
    assert len(fitted.codes) == 1


def test_the_segmenters_features_are_used_where_there_is_one(images: torch.Tensor) -> None:
    x = (images + 1) / 2
    plain = StyleFusionInversionPipeline(tiny_generator())(x)
    seen = StyleFusionInversionPipeline(tiny_generator(), segmenter=tiny_segmenter())(x)
    assert torch.equal(plain.mse, seen.mse)
    assert not torch.allclose(plain.feature_distance, seen.feature_distance)


def test_the_embedded_encoder_finds_samples_again() -> None:
    fuser = StyleFusionPipeline.from_embedded()
    samples = fuser(base=[1, 2, 3, 4], output_type="pt").images
    embedded = StyleFusionInversionPipeline.from_pipe(fuser)
    assert embedded(samples).mse.mean() < 0.2 * embedded(samples, start="mean").mse.mean()


# ----------------------------------------------------------------------------------------------------
# Previews instead of full pictures.


@pytest.fixture(scope="module")
def large() -> Any:
    """A MobileStyleGAN of 512 px, which is above the size that needs previews, with a head of 64 px."""
    torch.manual_seed(0)
    g = MobileStyleGANGenerator(512, channels=[4] * 7, z_dim=W_DIM, w_dim=W_DIM, mapping_layers=2).eval()
    g.estimate_w_avg(256)
    g.fit_preview(64, samples=8)
    return g.requires_grad_(False)


def sizes_of(large: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The heights of the pictures that are made with gradients, as they are made."""
    sizes: list[int] = []
    forward = large.synthesis.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        image = forward(*args, **kwargs)
        if torch.is_grad_enabled():
            sizes.append(image.shape[-1])
        return image

    monkeypatch.setattr(large.synthesis, "forward", watched)
    return sizes


def test_previews_are_compared_first_and_full_pictures_last(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.rand(1, 3, 512, 512)
    inverter = StyleFusionInversionPipeline(large)
    inverter.set_progress_bar_config(disable=True)
    seen: list[int] = []

    def note(pipe: Any, step: int, _: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {}

    sizes = sizes_of(large, monkeypatch)
    settings: dict[str, Any] = {"preview_resolution": 64, "num_final_steps": 3}
    out = inverter(target, num_inference_steps=9, **settings, callback_on_step_end=note)
    assert sizes == [64] * 7 + [512] * 4  # a further round of each evaluates only
    assert seen == list(range(9)) and out.steps.tolist() == [9]
    assert out.images[0].size == (512, 512)


def test_previews_are_used_where_they_resemble_the_full_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    g = tiny_mobile_generator(preview_resolutions=[8, 16]).requires_grad_(False)
    g.estimate_w_avg(256)
    forward, shift = g.synthesis.forward, [0.0]

    def synthesis(s: torch.Tensor, up_to: int | None = None, **kwargs: Any) -> torch.Tensor:
        image = forward(s, **kwargs)
        return image if up_to in (None, RESOLUTION) else F.adaptive_avg_pool2d(image, up_to) + shift[0]

    assert find_preview(g, 32) is None and find_preview(g, 16) == 16  # as given
    assert find_preview(g) is None  # small enough for full pictures
    monkeypatch.setattr(g.synthesis, "forward", synthesis)
    monkeypatch.setattr(previews, "PREVIEW", 16)
    monkeypatch.setattr(previews, "SMALLEST", 8)
    assert find_preview(g) == 16 and find_preview(g, most=8) == 8

    target, start = pictures(g, codes_of(g, 1, seed=5)), g.w_avg[None]
    objective, prior = Objective(edge_maps, target, feature_weight=0), CodePrior.of(g, 512)
    settings: dict[str, Any] = {"steps": 40, "preview": 16, "final_steps": 0, "prior_weight": 0}
    before = float(objective(pictures(g, start)))
    found = optimize_on_previews(g, start, "w", objective, prior, **settings)
    after = float(objective(pictures(g, found.codes)))
    assert float(found.loss) == pytest.approx(after) and after < 0.7 * before
    shift[0] = 2.0  # of another brightness: a code that fits these previews is worse than the start
    assert find_preview(g) is None
    found = optimize_on_previews(g, start, "w", objective, prior, **settings)
    assert float(found.loss) <= before * 1.0001
    assert float(found.loss) == pytest.approx(float(objective(pictures(g, found.codes))))


def test_full_pictures_can_be_demanded(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inverter = StyleFusionInversionPipeline(large)
    inverter.set_progress_bar_config(disable=True)
    sizes = sizes_of(large, monkeypatch)
    inverter(torch.rand(1, 3, 512, 512), num_inference_steps=2, preview_resolution=512)
    assert sizes == [512] * 3
    with pytest.raises(ValueError, match="preview_resolution is one of 64, 512, got 128"):
        inverter(torch.rand(1, 3, 512, 512), num_inference_steps=2, preview_resolution=128)


def test_an_interrupted_preview_has_no_full_steps(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(pipe: Any, step: int, _: int, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.interrupt = step == 2
        return {}

    inverter = StyleFusionInversionPipeline(large)
    inverter.set_progress_bar_config(disable=True)
    sizes = sizes_of(large, monkeypatch)
    inverter(torch.rand(1, 3, 512, 512), num_inference_steps=14, preview_resolution=64, callback_on_step_end=stop)
    assert set(sizes) == {64}


def test_an_objective_at_a_smaller_size_has_smaller_targets_and_weights() -> None:
    weight = torch.zeros(1, 16, 16)
    weight[:, :, :8] = 1
    half = Objective(edge_maps, draw(1, 3, 16, 16), weight, feature_weight=0).at_size(8)
    picture = half.targets.clone()
    picture[:, :, :, 4:] += 1  # where nothing counts
    assert float(half(picture)) < 1e-12 < float(half(half.targets + 1))


def test_the_prior_of_style_codes_has_the_moments_of_samples(generator: Any) -> None:
    prior = CodePrior.of(generator, samples=512)
    w = generator.mapping(torch.randn(512, W_DIM, generator=torch.Generator().manual_seed(0)))
    s = generator.to_style(w)
    assert torch.allclose(prior.s_mean, s.mean(0), atol=1e-5) and torch.allclose(prior.s_std, s.std(0), rtol=1e-3)
