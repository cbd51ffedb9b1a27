"""What tests/training/test_processes.py starts under torchrun: tiny trainings, stopped and resumed.

python -m tests.two_processes DATA OUT PORT: each trainer runs two steps, then is resumed to four. Every process writes
OUT/<trainer>-<rank>.json: digests of all that it would save, and the seeds of the generators that it drew from. Before
that, in OUT/fsdp, some do the same with their weights shared out (FSDP2), in forked processes whose group has a port
of its own, so that importing is paid for once. accelerate does that on accelerators only, and is made to think that
this is one.
"""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from stylefusion_hf.training import batches, checkpoints, loop
from tests import soak

# The fusion nets' discriminator is fine-tuned once a micro-batch, not once a step: not the same in one process.
MORE = {"fusion": ("--discriminator_learning_rate", "0")}
SHARED_OUT = ("segmenter",)  # fusion and judges do too, but take long


def digests(accelerator: Accelerator) -> list[str]:
    """Of weights, optimizers and averages, as they are in this process."""
    every = [*accelerator._models, *accelerator._optimizers, *accelerator._custom_objects]
    return [
        hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for thing in every
        for x in checkpoints.tensors_in(thing.state_dict())
    ]


def train(name: str, data: Path, out: Path, steps: int, *more: str) -> dict[str, Any]:
    """Train, and return the seeds of all draws and the digests of what checkpoints save."""
    job, record = soak.JOBS[name], {"seeds": [], "digests": {}}  # type: ignore[var-annotated]

    def save(accelerator: Accelerator, args: Any, step: int) -> Path:
        record["digests"][f"{args.output_dir} {step}"] = digests(accelerator)
        return checkpoints.save_checkpoint(accelerator, args, step)

    def draws(*args: Any) -> list:
        found = batches.step_generators(*args)
        record["seeds"].append([draw.initial_seed() for draw in found])
        return found

    loop.save_checkpoint, loop.step_generators = save, draws  # type: ignore[assignment]
    try:
        flags = [*job.flags(data, out), *MORE.get(name, ()), "--max_train_steps", str(steps), *soak.LATEST, *more]
        job.module.train(job.module.parse_args(flags))
    finally:
        loop.save_checkpoint, loop.step_generators = checkpoints.save_checkpoint, batches.step_generators
    return record


def share_out() -> None:
    """Have accelerate use FSDP2 in this process, on the CPU."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main(data: Path, out: Path, names: Sequence[str]) -> None:
    # All trainings in one process group: starting processes takes longer than training.
    Accelerator.end_training = lambda self: None  # type: ignore[method-assign]
    destroy, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda self, group=None: None
    for name in names:
        first = train(name, data, out / name, 2)
        second = train(name, data, out / name, 4)
        record = {"seeds": first["seeds"] + second["seeds"], "digests": first["digests"] | second["digests"]}
        out.mkdir(exist_ok=True)
        (out / f"{name}-{PartialState().process_index}.json").write_text(json.dumps(record))
    destroy(PartialState())


if __name__ == "__main__":
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not (child := os.fork()):
        status = 1
        try:
            os.environ |= {"MASTER_PORT": sys.argv[3], "TORCHELASTIC_USE_AGENT_STORE": "False"}
            share_out()
            main(data, out / "fsdp", SHARED_OUT)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit("FSDP failed")
    main(data, out, list(soak.JOBS))
