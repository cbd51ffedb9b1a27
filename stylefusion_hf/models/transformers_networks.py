"""Segmentation networks of the transformers library: building from a config, loading from a folder, preprocessing.

transformers is only imported when a network is built. Its image processors are not used: they process one picture at a
time, give no gradients, and some need torchvision. Their preprocessor_config.json is read here instead.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stylefusion_hf.core.checks import check_flag, check_number, short
from stylefusion_hf.core.hub_files import weight_patterns
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.regular_files import check_model_folder
from stylefusion_hf.models.config_checks import MAX_LAYERS, MAX_NAME

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
LARGEST = 2**22  # bytes of a config
LARGEST_NUMBER = 2**24  # in a network's config
COUNT_WORDS = ("layers", "depth", "num_blocks", "encoder_blocks")  # parts of config keys that count layers
# Keys of a saved config that describe its origin or how it was loaded rather than the network.
NON_NETWORK_KEYS = {"_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "quantization_config"}
NON_NETWORK_KEYS |= {"torch_dtype", "_attn_implementation", "_attn_implementation_internal", "attn_implementation"}
# Networks that predict masks and their classes separately; the outputs are combined as in MaskFormer.
MASK_CLASSIFIERS = ("maskformer", "mask2former", "eomt", "eomt_dinov3")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers; bicubic stands in for the others


def require_transformers() -> Any:
    """Return the transformers module; one-line ImportError that names the extra if it is missing or broken."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a segmenter from the Hub needs transformers ({short(str(error), 100)}): {install_command('segmenter')}"
        ) from error
    return transformers


# --- The network -----------------------------------------------------------------------------------------------------


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's config as plain JSON data, without keys that do not describe the network.

    Raises:
        ValueError: not a config, or one that needs code or weights from elsewhere or has absurd sizes; names the key.
    """
    try:
        copy = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"network must be a transformers config, a JSON object: {short(str(error), 200)}") from error
    found = {key: value for key, value in copy.items() if key not in NON_NETWORK_KEYS}
    if not isinstance(found.get("model_type"), str):
        raise ValueError(f"network must be a transformers config with a model_type, got {short(found)}")
    _check_values("network", found)
    return found


def _check_values(name: str, value: Any, depth: int = 0) -> None:
    """Check the values of an untrusted network config before any layer is built from them."""
    if depth > 8:
        raise ValueError(f"{name} is nested too deeply for a network's config")
    if isinstance(value, dict):
        for key in NON_NETWORK_KEYS:
            value.pop(key, None)
        backbone = value.get("backbone")
        if (isinstance(backbone, str) and value.get("backbone_config") is None) or value.get("use_timm_backbone"):
            raise ValueError(
                f"{name} takes its backbone {short(backbone)} from elsewhere (timm or the Hub): only networks with a"
                " complete config and complete weights can be used"
            )
        if value.get("model_type") == "timm_backbone":
            raise ValueError(f"{name} is a timm network, which this package does not use: choose another model")
        for key, item in value.items():
            _check_values(f"{name}.{key}", item, depth + 1)
    elif isinstance(value, list):
        if len(value) > 4096:
            raise ValueError(f"{name} has {len(value)} entries, more than a network's config can need")
        for item in value:
            _check_values(name, item, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_NAME:
            raise ValueError(f"{name} must be a string of at most {MAX_NAME} characters")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        counted = any(word in name.rsplit(".", 1)[-1] for word in COUNT_WORDS)
        check_number(name, value, -LARGEST_NUMBER, MAX_LAYERS if counted else LARGEST_NUMBER)


def _config_and_class(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the config object and the auto class of a network; ValueError if transformers has no such segmenter."""
    transformers = require_transformers()
    kind = config["model_type"]
    try:
        rest = deepcopy(dict(config))  # some of transformers' configs take entries out of nested dictionaries
        for key in ("model_type", "transformers_version"):
            rest.pop(key, None)
        made = transformers.AutoConfig.for_model(kind, **rest)
    except ImportError:
        raise
    except Exception as error:  # transformers' checks raise many kinds of errors
        raise ValueError(f"transformers cannot make a config of {short(kind)}: {_one_line(error)}") from error
    semantic = transformers.AutoModelForSemanticSegmentation
    if type(made) in semantic._model_mapping:
        return made, semantic
    if kind in MASK_CLASSIFIERS:
        return made, transformers.AutoModelForUniversalSegmentation
    known = sorted({c.model_type for c in semantic._model_mapping} | set(MASK_CLASSIFIERS))
    raise ValueError(f"{short(kind)} is not a network for semantic segmentation; available: {', '.join(known)}")


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config with random weights; one-line ValueError if transformers refuses."""
    made, auto = _config_and_class(config)
    try:
        network = auto.from_config(made, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "allocate" in str(error):
            raise
        problem = f"transformers cannot build a network from this {made.model_type} config"
        raise ValueError(f"{problem}: {_one_line(error)}") from error
    freeze_statistics(network)
    return network


def freeze_statistics(network: nn.Module) -> None:
    """Drop batch-norm counters and keep other integer buffers out of checkpoints, which hold real numbers only."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.num_batches_tracked = False, None
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_floating_point():
                module._non_persistent_buffers_set.add(name)


def load_network(folder: str, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Load config and weights of a network saved by transformers; safetensors only, and no remote code.

    Args:
        folder: contains config.json and the weights.
        where: its name in errors.

    Raises:
        OSError: a file is missing or damaged, or the weights are pickles.
        ValueError: the weights do not make a complete segmenter.
    """
    check_model_folder(folder)
    config = plain_config(read_json(Path(folder, CONFIG), where))
    if not any(any(Path(folder).glob(pattern)) for pattern in weight_patterns("", None)):
        raise OSError(
            f"{where} has no safetensors weights, and pickles, which can run code, are not read: name a revision with"
            " safetensors (the Hub's converter opens pull requests such as refs/pr/1), or convert the model with"
            " https://huggingface.co/spaces/safetensors/convert"
        )
    made, auto = _config_and_class(config)
    read_labels(made.to_dict())
    options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with _quiet():
            network, info = auto.from_pretrained(
                folder, config=made, output_loading_info=True, dtype=torch.float32, **options
            )
    except ImportError:
        raise
    except Exception as error:
        kind = OSError if isinstance(error, OSError) or "safetensor" in type(error).__name__.lower() else ValueError
        raise kind(f"the segmenter {where} cannot be loaded: {_one_line(error)}. Download or save it again") from error
    if missing := sorted(key for key in info["missing_keys"] if not key.endswith("num_batches_tracked")):
        raise ValueError(
            f"{where} is not a complete segmenter: it lacks {len(missing)} of {type(network).__name__}'s weights, such"
            f" as {missing[0]}. Choose a model that was trained for segmentation"
        )
    freeze_statistics(network)
    saved = plain_config(network.config.to_dict())
    return saved, network.state_dict()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' table of missing and mismatched weights; a one-line error follows anyway."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON object; one-line OSError for anything else."""
    try:
        return read_object(path, largest=LARGEST)
    except FileNotFoundError:
        raise OSError(f"{where} has no {path.name}: give a folder or Hub id of a transformers model") from None
    except (ValueError, OSError):
        raise OSError(f"{path.name} of {where} is not the JSON object that it should be: download it again") from None


def read_labels(config: Mapping[str, Any]) -> dict[int, str]:
    """Return class number -> class name, from a config with id2label."""
    given = config.get("id2label")
    try:
        labels = {int(number): str(name) for number, name in dict(given or {}).items()}
    except (TypeError, ValueError):
        labels = {}
    if sorted(labels) != list(range(len(labels))) or not labels:
        raise ValueError(f"the network's id2label must name the classes 0, 1, 2, ..., got {short(given)}")
    return labels


def _one_line(error: Exception) -> str:
    return short(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")


# --- Preprocessing ---------------------------------------------------------------------------------------------------


def read_preprocessing(folder: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read preprocessor_config.json and return the preprocessing as arguments of `HubSegmenter`.

    Without that file: the config's image_size or 512 pixels, and ImageNet's mean and standard deviation. Every pixel
    needs a region, so nothing is cropped: the whole picture is resized to the processor's crop size instead.

    Raises:
        ValueError: a value in the file has the wrong type.
    """
    path = Path(folder, PREPROCESSING)
    given = read_json(path, where) if os.path.isfile(path) else {}

    def flag(name: str, default: bool) -> bool:
        return default if given.get(name) is None else check_flag(f"{PREPROCESSING}: {name}", given[name])

    flips = flag("do_flip_channel_order", False)
    normalizes = flag(
        "do_normalize", given.get("do_flip_channel_order") is None
    )  # MobileViT's processor has no such flag
    factor = check_number("rescale_factor", given.get("rescale_factor") or 1 / 255, 0, 256)
    resample = given.get("resample", 2)
    multiple = given.get("ensure_multiple_of") or given.get("size_divisor") or 1
    return {
        "size": _size(given, config, flag("do_resize", True), flag("do_center_crop", False)),
        "multiple": multiple,
        "mean": _numbers("image_mean", given.get("image_mean") or MEAN) if normalizes else [0.0] * 3,
        "std": _numbers("image_std", given.get("image_std") or STD) if normalizes else [1.0] * 3,
        "white": 255 * factor if flag("do_rescale", True) else 255.0,
        "resample": RESAMPLING.get(resample, "bicubic") if isinstance(resample, int) else "bilinear",
        "flip_channels": flips,
    }


def _numbers(name: str, value: Any) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise ValueError(f"{PREPROCESSING}: {name} must be three numbers, one per channel, got {short(value)}")
    return [check_number(name, number, -1e4, 1e4) for number in value]


def _size(given: Mapping[str, Any], config: Mapping[str, Any], resizes: bool, crops: bool) -> list[int]:
    """Return [height, width], [shortest side], or [] to keep the pictures' size."""
    if not resizes and not crops:
        return []
    size = given.get("crop_size") if crops else given.get("size", config.get("image_size") or 512)
    if isinstance(size, Mapping):
        size = [size["height"], size["width"]] if {"height", "width"} <= set(size) else [size.get("shortest_edge")]
    elif isinstance(size, int):
        size = [size, size]
    if not isinstance(size, Sequence) or len(size) not in (1, 2) or not all(type(side) is int for side in size):
        raise ValueError(
            f"{PREPROCESSING}: size must be height and width or shortest_edge, in pixels, got {short(size)}"
        )
    return list(size)


def input_size(height: int, width: int, size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return the height and width to which a picture of this size is resized; `size` as returned by `_size`."""
    if len(size) == 2:
        sides = (float(size[0]), float(size[1]))
    else:
        scale = size[0] / min(height, width) if size else 1.0
        sides = (height * scale, width * scale)
    rounded = [max(multiple, math.ceil(round(side, 4) / multiple) * multiple) for side in sides]
    return rounded[0], rounded[1]
