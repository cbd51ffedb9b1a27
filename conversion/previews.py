"""Preview heads for a generator that is being converted: small pictures at a fraction of the cost."""

from __future__ import annotations

from accelerate import init_empty_weights

from stylefusion_hf.conversion.checks import is_too_large
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.writing import plain_weights
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator
from stylefusion_hf.models.stylegan3 import StyleGAN3Generator

PREVIEWS = (128, 256)  # sizes of the preview heads that a larger MobileStyleGAN gets
PREVIEW_SAMPLES = 32  # pictures of 1024 px that they are fitted to; fewer where pictures are larger


def fit_previews(
    converted: Converted,
    what: str,
    asked: tuple[int, ...] | None,
    cls: type[MobileStyleGANGenerator] | type[StyleGAN3Generator] = MobileStyleGANGenerator,
) -> dict[int, float] | None:
    """Add preview heads to a generator of class `cls` that is about to be saved.

    Args:
        asked: sizes; None for those of `PREVIEWS` that the model exceeds.

    Returns:
        The peak signal-to-noise ratio of each size's previews, in dB. None if the model is too large to be rendered.

    Raises:
        ConversionError: a size that the model has no features of, or weights that are broken.
    """
    resolution = converted.config["resolution"]
    sizes = [size for size in PREVIEWS if size < resolution] if asked is None else sorted(set(asked))
    if not sizes:
        return {}
    state = plain_weights(converted, what)
    try:
        with init_empty_weights(include_buffers=False):
            generator = cls(**converted.config)
        known = generator.synthesis.resolutions
        if unknown := [size for size in sizes if size not in known]:
            features = f"has features of {', '.join(map(str, known))}" if known else "has no smaller features"
            raise ConversionError(f"--previews {unknown[0]}: this generator of {resolution} px {features}")
        generator.load_state_dict(state, strict=True, assign=True)
        if is_too_large(generator):
            return None
        samples = max(2, min(PREVIEW_SAMPLES, PREVIEW_SAMPLES * 1024**2 // resolution**2))
        found = generator.eval().requires_grad_(False).fit_previews(sizes, samples)
    except ConversionError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{what}: {' '.join(str(error).split())[:300]}") from None
    converted.config["preview_resolutions"] = sizes
    for name, tensor in generator.synthesis.previews.state_dict().items():
        converted.state[f"synthesis.previews.{name}"] = tensor.contiguous()
    return found


def describe_previews(found: dict[int, float] | None) -> list[str]:
    """Return the report's line about what `fit_previews` gave, if there is something to say."""
    if found is None:
        return ["no previews: a picture is too large to be rendered here"]
    if not found:
        return []
    sizes = ", ".join(f"{size} px ({quality:.1f} dB)" for size, quality in found.items())
    return [f"previews of {sizes}, fitted by least squares to the model's own pictures"]
