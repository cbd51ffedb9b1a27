"""The contents of a checkpoint: models, optimizers, averages, schedules and random states.

Weights and optimizer states are those of the complete model, even if FSDP shards them, so a run can continue on
another number of processes. `state_files.py` writes and reads the files.
"""

import random
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import write_json
from stylefusion_hf.training.state_files import read_listed_json, read_state, read_weights, write_state, write_weights

# All files that a checkpoint may contain besides its manifest.
FILE = re.compile(
    r"(?:model|optimizer|state)(?:_[0-9]{1,3})?\.safetensors|(?:optimizer|state)(?:_[0-9]{1,3})?\.json|scaler\.json"
    r"|random_states_[0-9]{1,5}\.json"
)
UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # their own checkpoints are pickles

# --- All states ------------------------------------------------------------------------------------------------------


def collect(accelerator: Accelerator) -> dict[str, Any]:
    """Return {file name: state that this process writes there}; every process must call it.

    Raises:
        ValueError: DeepSpeed or Megatron-LM, whose checkpoints are pickles.
    """
    if accelerator.distributed_type in UNSUPPORTED:
        raise ValueError(
            f"{accelerator.distributed_type.value} stores its checkpoints as pickles, which this package never writes"
            " or reads: use DDP or FSDP (docs/guides/train.md)"
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
    """Write the result of `collect` into a folder, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in states.items():
        if name.startswith("model"):
            write_weights(folder / name, state)
        elif name.startswith("random_states"):
            write_json(folder / name, state, indent=None)
        else:
            write_state(folder / name, state)


def restore(accelerator: Accelerator, folder: Path, names: Collection[str]) -> None:
    """Load a checkpoint's states into the models, optimizers and registered objects of this process.

    Args:
        accelerator: has prepared and registered them.
        folder: the checkpoint.
        names: its files as listed in the manifest; no other is opened.

    Raises:
        ValueError, RuntimeError, KeyError, OSError, SafetensorError: a file is missing, damaged, or of other networks.
    """
    for i, model in enumerate(accelerator._models):
        load_model(accelerator, model, read_weights(folder / f"{_numbered('model', i)}.safetensors", names))
    if (scaler := accelerator.scaler) is not None:  # before the optimizers: loading these under FSDP takes a step
        scaler.load_state_dict(check_structure(read_state(folder / "scaler.json", names), scaler.state_dict()))
        if accelerator.is_fsdp2:
            scaler._lazy_init_scale_growth_tracker(scaler._device)
    for i, optimizer in enumerate(accelerator._optimizers):
        load_optimizer(accelerator, optimizer, i, read_state(folder / f"{_numbered('optimizer', i)}.json", names))
    for i, thing in enumerate(accelerator._custom_objects):
        state = read_state(folder / f"{_numbered('state', i)}.json", names)
        thing.load_state_dict(check_structure(state, thing.state_dict()))
    own = folder / _random_file(accelerator)
    if own.name in names:  # otherwise there are more processes now than when it was written
        found = read_listed_json(own, names)
        accelerator.step = int(found["step"])
        set_random_states(found)


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def _random_file(accelerator: Accelerator) -> str:
    return f"random_states_{accelerator.process_index}.json"


# --- Models and optimizers, complete or sharded ----------------------------------------------------------------------


def _full_state_options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def model_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Any]:
    """Return a model's tensors by their names without wrappers; under FSDP only the main process gets all of them."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(model, options=_full_state_options())
    return accelerator.unwrap_model(model).state_dict()


def load_model(accelerator: Accelerator, model: nn.Module, weights: dict[str, Any]) -> None:
    """Load the result of `model_state`."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(model, weights, options=_full_state_options())
    else:
        accelerator.unwrap_model(model).load_state_dict(weights)


def optimizer_state(accelerator: Accelerator, optimizer: Any, i: int) -> dict[str, Any]:
    """Return an optimizer's state; under FSDP for the complete model, by parameter names."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(accelerator._models[i], optimizer, options=_full_state_options())
    return optimizer.state_dict()


def load_optimizer(accelerator: Accelerator, optimizer: Any, i: int, state: Any) -> None:
    """Load the result of `optimizer_state`. ValueError if its groups or tensors belong to another optimizer."""
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(accelerator._models[i], optimizer, state, options=_full_state_options())
        return
    check_structure(state["param_groups"], optimizer.state_dict()["param_groups"], "param_groups")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        shape = parameters[index].shape
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape not in (shape, torch.Size([])):
                raise ValueError(
                    f"the optimizer's {short(name)} has the shape {tuple(value.shape)}, not {tuple(shape)}"
                )
    optimizer.load_state_dict(state)


def check_structure(found: Any, expected: Any, place: str = "state") -> Any:
    """Return `found` if it has the keys, lengths, types and shapes of `expected`. ValueError otherwise."""
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
        raise ValueError(f"{place} differs in structure from this training's")
    for key, one, other in pairs:
        check_structure(one, other, f"{place}/{short(key, 40)}")
    return found


# --- Random states ---------------------------------------------------------------------------------------------------


def random_states() -> dict[str, Any]:
    """Return this process's global random states of Python, NumPy and PyTorch as JSON (bytes as hex digits)."""
    name, keys, *rest = np.random.get_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in on_gpus],
    }


def set_random_states(found: Mapping[str, Any]) -> None:
    """Restore the result of `random_states`. ValueError if it is damaged."""
    name, keys, position, *rest = found["numpy"]
    if name != "MT19937" or len(keys) != 624 or not 0 <= position <= 624:  # NumPy does not check the position
        raise ValueError("its NumPy random state is damaged")
    version, numbers, normal = found["python"]
    random.setstate((version, tuple(numbers), normal))
    np.random.set_state((name, np.array(keys, np.uint32), position, *rest))
    torch.set_rng_state(_bytes(found["torch"]))
    if torch.cuda.is_available() and len(found["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes(state) for state in found["cuda"]])


def _bytes(digits: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
