"""The training loop: phases take turns within a step, micro-batches average, checkpoints keep their old names."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from stylefusion_hf.training.common import finishing, start
from stylefusion_hf.training.flags import common_parser
from stylefusion_hf.training.loop import MicroBatch, Phase, fit
from stylefusion_hf.training.state_files import read_state


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(i)])}


def arguments(out: Path, *more: str) -> argparse.Namespace:
    flags = f"--output_dir {out} --max_train_steps 3 --train_batch_size 2 --logging_steps 1 --seed 4"
    return common_parser("test", "test").parse_args([*flags.split(), *more])


class Training:
    """Two models: the second learns from what the first leaves in the micro-batch."""

    def __init__(self, args: argparse.Namespace, count: int = 2):
        torch.manual_seed(0)
        self.args, self.accelerator, self.events = args, start(args), []
        self.models = [nn.Linear(1, 1) for _ in range(count)]
        self.phases = []
        for number, plain in enumerate(self.models):
            optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
            schedule = LambdaLR(optimizer, lambda step: 0.5**step)
            model, optimizer = self.accelerator.prepare(plain, optimizer)
            hook = lambda step, number=number: self.events.append(("before_update", number, step))  # noqa: E731
            self.phases.append(Phase(model, optimizer, schedule, self.first if number == 0 else self.second, hook))

    def first(self, model: nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        made = model(micro.batch["x"])
        loss = made.square().mean()
        self.accelerator.backward(loss * micro.scale)
        micro.batch["made"] = made.detach()
        self.events.append(("loss", 0, micro.step))
        return {"first": loss}

    def second(self, model: nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        loss = (model(micro.batch["x"]) - micro.batch["made"]).square().mean()
        self.accelerator.backward(loss * micro.scale)
        self.events.append(("loss", 1, micro.step))
        return {"second": loss}

    def run(self) -> list[torch.Tensor]:
        with finishing(self.accelerator):
            fit(
                self.args,
                self.accelerator,
                *self.phases,
                dataset=Numbers(),
                before_training=lambda log, first: self.events.append(("before_training", first)),
                after_update=lambda step: self.events.append(("after_update", step)),
                validate=lambda log, done: self.events.append(("validate", done)),
                after_checkpoint=lambda done: self.events.append(("after_checkpoint", done)),
            )
        return [p.detach().clone() for model in self.models for p in model.parameters()]


def test_phases_take_turns_and_hooks_are_called_in_order(tmp_path):
    training = Training(arguments(tmp_path, "--gradient_accumulation_steps", "2", "--validation_steps", "2"))
    training.run()
    step = [[("loss", k, n), ("loss", k, n), ("before_update", k, n)] for n in range(3) for k in range(2)]
    turns = [[*step[2 * n], *step[2 * n + 1], ("after_update", n)] for n in range(3)]
    expected = [("before_training", 0), *turns[0], *turns[1], ("validate", 2), *turns[2], ("after_checkpoint", 3)]
    assert training.events == expected
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all({"first", "second"} <= row.keys() for row in rows)


@pytest.mark.parametrize(("count", "name"), [(1, "schedule"), (2, "schedules")])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, count, name):
    whole = Training(arguments(tmp_path / "whole"), count).run()
    half = arguments(tmp_path / "halves")
    half.max_train_steps = 1
    Training(half, count).run()
    resumed = Training(arguments(tmp_path / "halves", "--resume_from_checkpoint", "latest"), count)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed.run(), strict=True))
    assert resumed.events[0] == ("before_training", 1)
    # What checkpoints of earlier versions call them.
    file = tmp_path / "halves" / "checkpoint-3" / "state.json"
    assert list(read_state(file, [file.name])) == [name]


def test_micro_batches_average_to_the_whole_batch(tmp_path):
    """Two micro-batches of a step give the gradient of both together: a step of the sum would be twice as far."""
    args = arguments(tmp_path / "two", "--gradient_accumulation_steps", "2")
    args.max_train_steps = 1
    seen: list[torch.Tensor] = []
    training = Training(args, 1)
    loss = training.first

    def recording(model: nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        seen.append(micro.batch["x"])
        return loss(model, micro)

    training.phases = [Phase(p.model, p.optimizer, p.schedule, recording) for p in training.phases]
    torch.manual_seed(0)
    alone = nn.Linear(1, 1)
    found = training.run()
    alone(torch.cat(seen)).square().mean().backward()
    assert len(seen) == 2
    for parameter, expected in zip(found, alone.parameters(), strict=True):
        assert torch.allclose(parameter, expected.detach() - 0.01 * expected.grad, atol=1e-6)
