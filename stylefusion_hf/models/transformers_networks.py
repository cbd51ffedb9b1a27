"""Segmentation networks of the transformers library: made from a config, loaded from a folder, and how pictures are
prepared for them.

transformers is imported when one is made, never before. Its image processors are not used: they work on one picture
after the other, give no gradient, and some want torchvision. What their preprocessor_config.json says is read here.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stylefusion_hf.core.checks import check_flag, check_number, short
from stylefusion_hf.core.hub_files import weight_patterns
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.regular_files import check_model_folder
from stylefusion_hf.models.config_checks import MAX_NAME, MOST_LAYERS

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
LARGEST = 2**22  # bytes of a config
LARGEST_NUMBER = 2**24  # in a network's config
COUNTED = ("layers", "depth", "num_blocks", "encoder_blocks")  # in names of numbers that are counts of layers
# Keys of a saved config that say where it came from or how it was loaded, not what the network is.
FOREIGN = {"_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "quantization_config"}
FOREIGN |= {"torch_dtype", "_attn_implementation", "_attn_implementation_internal", "attn_implementation"}
# Networks that tell masks and their classes apart; their outputs are put together as MaskFormer does.
MASKING = ("maskformer", "mask2former", "eomt", "eomt_dinov3")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers; the others are near bicubic


def require_transformers() -> Any:
    """The module; ImportError in one line that names the extra where it is missing or broken."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a segmenter from the Hub needs transformers ({short(str(error), 100)}):"
            " pip install stylefusion-hf[segmenter]"
        ) from error
    return transformers


# --- The network -----------------------------------------------------------------------------------------------------


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's config as JSON keeps it, without what does not belong to the network.

    Raises:
        ValueError: it is no config, asks for code or weights from elsewhere, or for absurd sizes; names the key.
    """
    try:
        copy = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"network is a config of transformers, a JSON object: {short(str(error), 200)}") from error
    found = {key: value for key, value in copy.items() if key not in FOREIGN}
    if not isinstance(found.get("model_type"), str):
        raise ValueError(f"network is a config of transformers with a model_type, got {short(found)}")
    _check_values("network", found)
    return found


def _check_values(name: str, value: Any, depth: int = 0) -> None:
    """Sizes of a stranger's network, before a layer is made of them."""
    if depth > 8:
        raise ValueError(f"{name} is nested too deeply for a network's config")
    if isinstance(value, dict):
        for key in FOREIGN:
            value.pop(key, None)
        backbone = value.get("backbone")
        if (isinstance(backbone, str) and value.get("backbone_config") is None) or value.get("use_timm_backbone"):
            raise ValueError(
                f"{name} takes its backbone {short(backbone)} from elsewhere (timm or the Hub): only networks whose"
                " own config and weights are complete can be used"
            )
        if value.get("model_type") == "timm_backbone":
            raise ValueError(f"{name} is a network of timm, which this package does not use: choose another model")
        for key, item in value.items():
            _check_values(f"{name}.{key}", item, depth + 1)
    elif isinstance(value, list):
        if len(value) > 4096:
            raise ValueError(f"{name} has {len(value)} entries, more than a network's config can need")
        for item in value:
            _check_values(name, item, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_NAME:
            raise ValueError(f"{name} is a text of at most {MAX_NAME} characters")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        counted = any(word in name.rsplit(".", 1)[-1] for word in COUNTED)
        check_number(name, value, -LARGEST_NUMBER, MOST_LAYERS if counted else LARGEST_NUMBER)


def _config_and_class(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config object and the auto class of a network; ValueError where transformers has no such segmenter."""
    transformers = require_transformers()
    kind = config["model_type"]
    try:
        rest = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
        made = transformers.AutoConfig.for_model(kind, **rest)
    except ImportError:
        raise
    except Exception as error:  # transformers' checks raise errors of many kinds
        raise ValueError(f"transformers makes no config of {short(kind)}: {_line(error)}") from error
    semantic = transformers.AutoModelForSemanticSegmentation
    if type(made) in semantic._model_mapping:
        return made, semantic
    if kind in MASKING:
        return made, transformers.AutoModelForUniversalSegmentation
    known = sorted({c.model_type for c in semantic._model_mapping} | set(MASKING))
    raise ValueError(f"{short(kind)} is no network for semantic segmentation: there are {', '.join(known)}")


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """The network of a config, with random weights; ValueError in one line where transformers refuses."""
    made, auto = _config_and_class(config)
    try:
        network = auto.from_config(made, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "allocate" in str(error):
            raise
        raise ValueError(f"transformers makes no network of this {made.model_type} config: {_line(error)}") from error
    freeze_statistics(network)
    return network


def freeze_statistics(network: nn.Module) -> None:
    """Batch norms count nothing and other integer buffers are constants: a checkpoint holds real numbers alone."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.num_batches_tracked = False, None
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_floating_point():
                module._non_persistent_buffers_set.add(name)


def load_network(folder: str, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and weights of a network that transformers saved; only safetensors, and no code of anybody's.

    Args:
        folder: holds config.json and the weights.
        where: what to call it in errors.

    Raises:
        OSError: a file is missing or damaged, or the weights are pickles. ValueError: they are no whole segmenter.
    """
    check_model_folder(folder)
    config = plain_config(read_json(Path(folder, CONFIG), where))
    if not any(any(Path(folder).glob(pattern)) for pattern in weight_patterns("", None)):
        raise OSError(
            f"{where} has no safetensors weights, and pickles, which can run code, are not read: name a revision that"
            " has them (the Hub's converter proposes refs/pr/1 or the like), or convert the model with"
            " https://huggingface.co/spaces/safetensors/convert"
        )
    made, auto = _config_and_class(config)
    labels_of(made.to_dict())
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
        raise kind(f"the segmenter {where} cannot be loaded: {_line(error)}. Download or save it again") from error
    if missing := sorted(key for key in info["missing_keys"] if not key.endswith("num_batches_tracked")):
        raise ValueError(
            f"{where} is no whole segmenter: its weights lack {len(missing)} of {type(network).__name__}'s, such as"
            f" {missing[0]}. Choose a model that was trained for segmentation"
        )
    freeze_statistics(network)
    saved = plain_config(network.config.to_dict())
    return saved, network.state_dict()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unfit weights, which an error of one line follows."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """A JSON object; OSError in one line for anything else."""
    try:
        return read_object(path, largest=LARGEST)
    except FileNotFoundError:
        raise OSError(f"{where} has no {path.name}: give a folder or Hub id of a transformers model") from None
    except (ValueError, OSError):
        raise OSError(f"{path.name} of {where} is not the JSON object that it should be: download it again") from None


def labels_of(config: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name of each class, from a config with id2label."""
    given = config.get("id2label")
    try:
        labels = {int(number): str(name) for number, name in dict(given or {}).items()}
    except (TypeError, ValueError):
        labels = {}
    if sorted(labels) != list(range(len(labels))) or not labels:
        raise ValueError(f"the network's id2label must name the classes 0, 1, 2, ..., got {short(given)}")
    return labels


def _line(error: Exception) -> str:
    return short(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")


# --- What pictures it wants ------------------------------------------------------------------------------------------


def preparation(folder: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How pictures become the network's input, as `HubSegmenter`'s arguments, read from preprocessor_config.json.

    Without that file: the config's image_size or 512 pixels, and ImageNet's mean and deviation. Cropping is not done,
    since every pixel needs a region: where a processor would crop, the whole picture is brought to that size.

    Raises:
        ValueError: something in the file is of another kind than it should be.
    """
    path = Path(folder, PREPROCESSING)
    given = read_json(path, where) if os.path.isfile(path) else {}

    def flag(name: str, default: bool) -> bool:
        return default if given.get(name) is None else check_flag(f"{PREPROCESSING}: {name}", given[name])

    flips = flag("do_flip_channel_order", False)
    normal = flag("do_normalize", given.get("do_flip_channel_order") is None)  # MobileViT's processor has no such flag
    factor = check_number("rescale_factor", given.get("rescale_factor") or 1 / 255, 0, 256)
    resample = given.get("resample", 2)
    multiple = given.get("ensure_multiple_of") or given.get("size_divisor") or 1
    return {
        "size": _size(given, config, flag("do_resize", True), flag("do_center_crop", False)),
        "multiple": multiple,
        "mean": _numbers("image_mean", given.get("image_mean") or MEAN) if normal else [0.0] * 3,
        "std": _numbers("image_std", given.get("image_std") or STD) if normal else [1.0] * 3,
        "white": 255 * factor if flag("do_rescale", True) else 255.0,
        "resample": RESAMPLING.get(resample, "bicubic") if isinstance(resample, int) else "bilinear",
        "flip_channels": flips,
    }


def _numbers(name: str, value: Any) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise ValueError(f"{PREPROCESSING}: {name} is three numbers, one a channel, got {short(value)}")
    return [check_number(name, number, -1e4, 1e4) for number in value]


def _size(given: Mapping[str, Any], config: Mapping[str, Any], resizes: bool, crops: bool) -> list[int]:
    """[height, width], [shortest side], or [] for pictures as they are."""
    if not resizes and not crops:
        return []
    size = given.get("crop_size") if crops else given.get("size", config.get("image_size") or 512)
    if isinstance(size, Mapping):
        size = [size["height"], size["width"]] if {"height", "width"} <= set(size) else [size.get("shortest_edge")]
    elif isinstance(size, int):
        size = [size, size]
    if not isinstance(size, Sequence) or len(size) not in (1, 2) or not all(type(side) is int for side in size):
        raise ValueError(f"{PREPROCESSING}: size is height and width or shortest_edge, in pixels, got {short(size)}")
    return list(size)


def input_size(height: int, width: int, size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width that pictures of these are brought to, for `size` as `_size` gives it."""
    if len(size) == 2:
        sides = (float(size[0]), float(size[1]))
    else:
        scale = size[0] / min(height, width) if size else 1.0
        sides = (height * scale, width * scale)
    rounded = [max(multiple, math.ceil(round(side, 4) / multiple) * multiple) for side in sides]
    return rounded[0], rounded[1]
