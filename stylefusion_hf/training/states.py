"""What a checkpoint consists of, as safetensors and JSON: models, optimizers, averages, schedules, random states.

Nothing here pickles or unpickles. Nested states (dicts, lists and tuples of tensors and plain values) are their
structure as JSON and, beside it, their tensors as safetensors. Weights and optimizer states are those of the whole
model, also where FSDP shares them out, so a run can be continued on another number of processes.
"""

import json
import random
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import safe_open
from torch import Tensor, nn

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.tensor_files import write_tensors

# All files that a checkpoint may have, beside its manifest.
FILE = re.compile(
    r"(?:model|optimizer|state)(?:_[0-9]{1,3})?\.safetensors|(?:optimizer|state)(?:_[0-9]{1,3})?\.json|scaler\.json"
    r"|random_states_[0-9]{1,5}\.json"
)
UNSHARED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # whose own checkpoints are pickles

# --- Nested states as files ------------------------------------------------------------------------------------------


def write_state(path: Path, state: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts, booleans and None.

    Args:
        path: ends in .json and gets the structure; the tensors, where there are any, go beside it as .safetensors.

    Raises:
        TypeError: it holds something else. OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, (), tensors)
    if tensors:
        write_tensors(path.with_suffix(".safetensors"), _separate(tensors), {"format": "pt"})
    write_json(path, structure, indent=None)


def read_state(path: Path, names: Collection[str]) -> Any:
    """What `write_state` wrote, its tensors on the CPU.

    Args:
        path: the JSON file.
        names: the files that may be opened: what the manifest lists.

    Raises:
        ValueError: a file is not among these, or damaged.
    """
    content, tensors = path.with_suffix(".safetensors"), {}
    if content.name in names:
        tensors = read_weights(content, names)
    return _unpack(_read_json(path, names), tensors)


def read_weights(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where the manifest does not list it."""
    with safe_open(_listed(path, names), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_json(path: Path, names: Collection[str]) -> Any:
    return json.loads(_listed(path, names).read_text(encoding="utf-8"))


def _listed(path: Path, names: Collection[str]) -> Path:
    if path.name not in names:
        raise ValueError(f"it has no {path.name}")
    return path


def _pack(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """The structure as JSON: a plain value is itself, all else an object whose only key names its type."""
    if isinstance(value, Tensor):
        name = "/".join(place) or "tensor"
        while name in tensors:
            name += "+"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"a checkpoint cannot keep a dict with the key {short(wrong[0])}")
        return {"dict": [[key, _pack(item, (*place, str(key)), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, (*place, str(i)), tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot keep {'/'.join(place)}, of type {type(value).__name__}")


def _unpack(found: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(found, list):
        raise ValueError("its structure is damaged")
    if not isinstance(found, dict):
        return found
    ((kind, content),) = found.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_unpack(item, tensors) for item in content)
    raise ValueError(f"its structure is damaged: {short(kind)}")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own, as safetensors wants them."""
    found, taken = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return found


# --- The states of a training ----------------------------------------------------------------------------------------


def collect(accelerator: Accelerator) -> dict[str, Any]:
    """File name -> what this process has to write there; every process must call it.

    Raises:
        ValueError: DeepSpeed or Megatron-LM, whose checkpoints are pickles.
    """
    if accelerator.distributed_type in UNSHARED:
        raise ValueError(
            f"{accelerator.distributed_type.value} keeps its checkpoints as pickles, which are never written or read"
            " here: use DDP or FSDP (docs/guides/train.md)"
        )
    states: dict[str, Any] = {}
    for i, model in enumerate(accelerator._models):
        states[f"{_numbered('model', i)}.safetensors"] = model_state(accelerator, model)
    for i, optimizer in enumerate(accelerator._optimizers):
        states[f"{_numbered('optimizer', i)}.json"] = optimizer_state(accelerator, optimizer, i)
    for i, thing in enumerate(accelerator._custom_objects):
        states[f"{_numbered('state', i)}.json"] = thing.state_dict()
    if accelerator.scaler is not None:
        states["scaler.json"] = accelerator.scaler.state_dict()
    if not accelerator.is_main_process:
        states = {}
    states[_random_file(accelerator)] = {"step": accelerator.step, **random_states()}
    return states


def write(folder: Path, states: Mapping[str, Any]) -> None:
    """Write what `collect` gave into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in states.items():
        if name.startswith("model"):
            write_tensors(folder / name, _separate(state), {"format": "pt"})
        elif name.startswith("random_states"):
            write_json(folder / name, state, indent=None)
        else:
            write_state(folder / name, state)


def restore(accelerator: Accelerator, folder: Path, names: Collection[str]) -> None:
    """Load a checkpoint's states into the models, optimizers and registered objects of this process.

    Args:
        accelerator: has prepared and registered them.
        folder: the checkpoint.
        names: its files, as the manifest lists them; no other is opened.

    Raises:
        ValueError, RuntimeError, KeyError, OSError, SafetensorError: files that are missing, damaged, or of others.
    """
    for i, model in enumerate(accelerator._models):
        load_model(accelerator, model, read_weights(folder / f"{_numbered('model', i)}.safetensors", names))
    if (scaler := accelerator.scaler) is not None:  # before the optimizers: loading these under FSDP takes a step
        scaler.load_state_dict(alike(read_state(folder / "scaler.json", names), scaler.state_dict()))
        if accelerator.is_fsdp2:
            scaler._lazy_init_scale_growth_tracker(scaler._device)
    for i, optimizer in enumerate(accelerator._optimizers):
        load_optimizer(accelerator, optimizer, i, read_state(folder / f"{_numbered('optimizer', i)}.json", names))
    for i, thing in enumerate(accelerator._custom_objects):
        thing.load_state_dict(alike(read_state(folder / f"{_numbered('state', i)}.json", names), thing.state_dict()))
    own = folder / _random_file(accelerator)
    if own.name in names:  # else there are more processes now than when it was written
        found = _read_json(own, names)
        accelerator.step = int(found["step"])
        set_random_states(found)


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def _random_file(accelerator: Accelerator) -> str:
    return f"random_states_{accelerator.process_index}.json"


# --- Models and optimizers, whole or shared out ----------------------------------------------------------------------


def _whole_options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def model_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Any]:
    """A model's tensors by the names that it has without wrappers; under FSDP complete in the main process alone."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(model, options=_whole_options())
    return accelerator.unwrap_model(model).state_dict()


def load_model(accelerator: Accelerator, model: nn.Module, weights: dict[str, Any]) -> None:
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(model, weights, options=_whole_options())
    else:
        accelerator.unwrap_model(model).load_state_dict(weights)


def optimizer_state(accelerator: Accelerator, optimizer: Any, i: int) -> dict[str, Any]:
    """An optimizer's state; under FSDP that of the whole model, by the names of its parameters."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(accelerator._models[i], optimizer, options=_whole_options())
    return optimizer.state_dict()


def load_optimizer(accelerator: Accelerator, optimizer: Any, i: int, state: Any) -> None:
    """Load what `optimizer_state` gave. ValueError where its groups or its tensors are those of another optimizer."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(accelerator._models[i], optimizer, state, options=_whole_options())
        return
    alike(state["param_groups"], optimizer.state_dict()["param_groups"], "param_groups")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        shape = parameters[index].shape
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape not in (shape, torch.Size([])):
                raise ValueError(
                    f"the optimizer's {short(name)} has the shape {tuple(value.shape)}, not {tuple(shape)}"
                )
    optimizer.load_state_dict(state)


def alike(found: Any, expected: Any, place: str = "state") -> Any:
    """`found`, if it has the structure of `expected`: the same keys, lengths and types. ValueError otherwise."""
    if isinstance(expected, Mapping):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        pairs: Iterator[tuple[Any, Any, Any]] = ((k, found[k], v) for k, v in expected.items()) if same else iter(())
    elif isinstance(expected, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(expected)
        pairs = ((i, a, b) for i, (a, b) in enumerate(zip(found, expected, strict=True))) if same else iter(())
    elif isinstance(expected, Tensor):
        same, pairs = isinstance(found, Tensor) and found.shape == expected.shape, iter(())
    elif isinstance(expected, (int, float)) and not isinstance(expected, bool):
        same, pairs = isinstance(found, (int, float)) and not isinstance(found, bool), iter(())
    else:
        same, pairs = type(found) is type(expected), iter(())
    if not same:
        raise ValueError(f"{place} is not what this training has there")
    for key, one, other in pairs:
        alike(one, other, f"{place}/{short(key, 40)}")
    return found


# --- Random states ---------------------------------------------------------------------------------------------------


def random_states() -> dict[str, Any]:
    """The global random states of this process, JSON-able: Python's, NumPy's and PyTorch's (bytes as hex digits)."""
    name, keys, *rest = np.random.get_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in on_gpus],
    }


def set_random_states(found: Mapping[str, Any]) -> None:
    """Continue from what `random_states` gave; ValueError for numbers that no such state has."""
    name, keys, position, *rest = found["numpy"]
    if name != "MT19937" or len(keys) != 624 or not 0 <= position <= 624:  # NumPy does not look at the position
        raise ValueError("its NumPy random state is damaged")
    version, numbers, normal = found["python"]
    random.setstate((version, tuple(numbers), normal))
    np.random.set_state((name, np.array(keys, np.uint32), position, *rest))
    torch.set_rng_state(_bytes(found["torch"]))
    if torch.cuda.is_available() and len(found["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes(state) for state in found["cuda"]])


def _bytes(digits: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
