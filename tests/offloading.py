"""Every way of offloading, on a make-believe accelerator: `python -m tests.offloading` prints what works as JSON.

For each mode, generator and use of a pipeline: the largest difference from the same call on the CPU, or the error.
`--table` prints the table of docs/reference/platforms.md instead.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from stylefusion_hf import (
    Direction,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPhotoPipeline,
    StyleGAN2Generator,
)
from stylefusion_hf.models.hooks import plain_copy
from stylefusion_hf.models.loading import weights_sha256
from tests.fake_device import install
from tests.portraits import FIVE
from tests.tiny import (
    W_DIM,
    tiny_encoder,
    tiny_fusion,
    tiny_generator,
    tiny_mobile_generator,
    tiny_pipeline,
    tiny_segmenter,
    tiny_stylegan3_generator,
)

FP8, WIDE = torch.float8_e4m3fn, torch.float32
PICTURE = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
PHOTOGRAPH = Image.fromarray((PICTURE[0].permute(1, 2, 0) * 255).byte().numpy())
WHOLE = 0.16 * (FIVE - FIVE.mean(axis=0)) + [15.5, 16.9]  # landmarks whose square is about the whole picture
STEPS: dict[str, Any] = {"num_inference_steps": 3, "preview_resolution": 32}

# ----------------------------------------------------------------------------------------------------
# Modes, uses and models.


def group(pipe: Any, kind: str, **settings: Any) -> None:
    pipe.enable_group_offload("fake", offload_type=kind, num_blocks_per_group=2, **settings)


def cast(pipe: Any) -> None:
    for name in ("generator", "fusion", "segmenter", "encoder"):
        getattr(pipe, name).enable_layerwise_casting(storage_dtype=FP8, compute_dtype=WIDE)


def cast_and_group(pipe: Any) -> None:
    cast(pipe)
    group(pipe, "leaf_level")


MODES: dict[str, Callable[[Any], Any]] = {
    "on the device": lambda pipe: pipe.to("fake"),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="fake"),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(device="fake"),
    "group offload, leaf": lambda pipe: group(pipe, "leaf_level"),
    "group offload, block": lambda pipe: group(pipe, "block_level"),
    "layerwise casting": cast,
    "casting and group offload": cast_and_group,
}


def direction(space: str, pipe: Any) -> Direction:
    shape = W_DIM if space == "w" else pipe.generator.style_dim
    return Direction("x", space, torch.nn.functional.one_hot(torch.tensor(2), shape).float(), 1.0)


def converted(kind: Any, pipe: Any) -> Any:
    """Another pipeline of the same components, offloaded as they are."""
    maker = kind.from_pipe(pipe)
    maker._all_hooks = getattr(pipe, "_all_hooks", [])
    maker._offload_device = getattr(pipe, "_offload_device", None)
    maker.set_progress_bar_config(disable=True)
    return maker


def invert(pipe: Any, **settings: Any) -> torch.Tensor:
    maker = converted(StyleFusionInversionPipeline, pipe)
    out = maker(PICTURE, output_type="pt", **settings)
    if settings.get("num_tuning_steps"):
        assert weights_sha256(out.generator) != weights_sha256(pipe.generator), "nothing was tuned"
    return out.images.cpu()


def walk(pipe: Any, **settings: Any) -> torch.Tensor:
    maker = StyleFusionInterpolationPipeline.from_pipe(pipe)
    maker.set_progress_bar_config(disable=True)
    return maker(base=1, regions={"hair": [2, 3]}, steps=3, output_type="pt", **settings).frames.cpu()


def photograph(pipe: Any) -> torch.Tensor:
    maker = converted(StyleFusionPhotoPipeline, pipe)
    change = {"regions": {"hair": 7}, "num_inference_steps": 2, "num_tuning_steps": 1, "refine_steps": 1}
    return maker(PHOTOGRAPH, landmarks=WHOLE, **change, output_type="pt").images.cpu()


def draw(pipe: Any, **settings: Any) -> torch.Tensor:
    return pipe(base=1, regions={"hair": [7, 8]}, output_type="pt", **settings).images.cpu()


def picture_codes(pipe: Any) -> torch.Tensor:
    return pipe(base=PICTURE.permute(0, 2, 3, 1).numpy(), regions={"eyes": 4}, output_type="pt").images.cpu()


USES: dict[str, Callable[[Any], torch.Tensor]] = {
    "pictures": lambda pipe: draw(pipe, strength=0.5, truncation_cutoff=3),
    "random noise": lambda pipe: draw(pipe, noise_mode="random", generator=torch.Generator().manual_seed(1)),
    "masks": lambda pipe: pipe(base=[1, 2], output_masks=True).masks["hair"].float().cpu(),
    "edits": lambda pipe: draw(pipe, edits={"hair": [direction("w", pipe), direction("s", pipe)]}),
    "refinement": lambda pipe: draw(pipe, refine_steps=2),
    "image codes": picture_codes,
    "walk": walk,
    "walk in z": lambda pipe: walk(pipe, space="z"),
    "inversion": lambda pipe: invert(pipe, **STEPS),
    "inversion in s": lambda pipe: invert(pipe, **STEPS, latent_type="s", start="mean", region_weights={"hair": 3}),
    "tuning": lambda pipe: invert(pipe, **STEPS, num_tuning_steps=2),
    "photograph": photograph,
}


def labelled(seed: int = 0) -> StyleGAN2Generator:
    return tiny_generator(seed, label_dim=3)


GENERATORS: dict[str, Callable[[], Any]] = {
    "StyleGAN2": tiny_generator, "MobileStyleGAN": tiny_mobile_generator,
    "StyleGAN3": tiny_stylegan3_generator,
    "with labels": labelled
}  # fmt: skip


def build(kind: str) -> Any:
    """A pipeline with all components, with statistics and all kinds of gates."""
    generator = GENERATORS[kind]()
    gates = {"gate_bias": True, "gate_product": True, "gate_novelty": True, "standardise": True}
    fusion = tiny_fusion(generator, **gates, adaptive_conv_layers=3, context_width=4)
    fusion.set_statistics(torch.randn(8, generator.style_dim, generator=torch.Generator().manual_seed(0)))
    return type(tiny_pipeline())(generator, fusion, tiny_segmenter(), tiny_encoder())


# ----------------------------------------------------------------------------------------------------
# Running them.


def left_on_device(pipe: Any) -> list[str]:
    """The parameters of more than 8 numbers that a call has left on the device."""
    named = [(f"{name}.{key}", p) for name, c in pipe.components.items() for key, p in c.named_parameters()]
    return [name for name, p in named if p.device.type == "fake" and p.numel() > 8]


def measure(kind: str, mode: str, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """{use: largest difference from `expected`, or the error}; "left": what is on the device afterward."""
    uses = list(expected)
    found: dict[str, Any] = {}
    try:
        pipe = build(kind)
        MODES[mode](pipe)
        digests = pipe.model_identity()["sha256"]
        if "casting" in mode:  # rounds weights: the same call with rounded weights on the CPU
            rounded = type(pipe)(**{name: plain_copy(c, "cpu") for name, c in pipe.components.items()})
            assert rounded.model_identity()["sha256"] == digests != build(kind).model_identity()["sha256"]
            expected = {use: USES[use](rounded) for use in uses}
    except Exception as error:
        return dict.fromkeys(uses, f"{type(error).__name__}: {error}")
    for use in uses:
        try:
            found[use] = float((USES[use](pipe) - expected[use]).abs().max())
        except Exception as error:
            found[use] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:300]
    found["left"] = left_on_device(pipe)
    found["same weights"] = pipe.model_identity()["sha256"] == digests
    return found


def run(kinds: list[str], modes: list[str], uses: list[str]) -> dict[str, dict[str, Any]]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if torch._C._get_privateuse1_backend_name() != "fake":
        install()
    table: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        plain = build(kind)
        expected = {use: USES[use](plain) for use in uses}
        table[kind] = {mode: measure(kind, mode, expected) for mode in modes}
    return table


def as_markdown(table: dict[str, dict[str, Any]]) -> str:
    """One table: in each cell the generators' largest difference, or who fails."""
    uses, kinds = list(USES), list(table)
    lines = [f"| | {' | '.join(uses)} |", "|---" * (len(uses) + 1) + "|"]
    for mode in MODES:
        cells = []
        for use in uses:
            values = [table[kind][mode][use] for kind in kinds]
            failed = [v for v in values if isinstance(v, str)]
            cells.append(failed[0] if failed else "same" if max(values) < 1e-4 else f"{max(values):.1g}")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run_small() -> dict[str, dict[str, Any]]:
    """What the tests run: each mode with each use once, and the other generators where they differ."""
    uses = [use for use in USES if use not in ("walk in z", "inversion in s")]
    table = run(["StyleGAN2"], list(MODES)[1:], uses)
    modes = ["sequential offload", "group offload, leaf", "group offload, block"]
    table |= run(["MobileStyleGAN"], modes, ["pictures", "random noise", "inversion"])
    return table | run(["StyleGAN3", "with labels"], modes[:2], ["pictures"])


if __name__ == "__main__":
    table = run_small() if "--small" in sys.argv else run(list(GENERATORS), list(MODES), list(USES))
    print(as_markdown(table) if "--table" in sys.argv else json.dumps(table))
