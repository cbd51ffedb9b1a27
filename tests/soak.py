"""Kill trainings and renderings at random moments (SIGKILL), resume them, compare with a run that nobody disturbed.

    python -m tests.soak --cycles 100        # `make soak`

A cycle is one tiny training in a folder of its own: it is started, killed one to three times (at any moment, or while
a checkpoint is being written: after a random time, or at a random file operation), each time continued with
--resume_from_checkpoint latest, and at last left to finish. Its weights, its checkpoints and what else it made must
then be those of the undisturbed run, to the bit; and no kill may cost a checkpoint that was whole before. This process
imports once and forks the trainings, so that a start takes milliseconds.
"""

import argparse
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf import StyleGAN2Discriminator, cli
from stylefusion_hf.export import rendering
from stylefusion_hf.training import checkpoints, encoder, fusion, generator, judges, loop, segmenter
from tests.tiny import tiny_generator, tiny_pipeline, tiny_segmenter

LATEST = ("--resume_from_checkpoint", "latest")
STATE = re.compile(r"(optimizer|state)(_\d+)?\.json")
HOW = ("at any moment", "while writing", "at a file operation")


@dataclass(frozen=True)
class Job:
    """One trainer: its module (`parse_args`, `train`) and flags for a tiny run, without steps."""

    module: ModuleType
    text: str  # {data} stands for the folder of `make_data`
    steps: int = 5

    def run(self, data: Path, out: Path) -> None:
        """The training as a user starts and restarts it."""
        flags = [*self.flags(data, out), "--max_train_steps", str(self.steps), *LATEST]
        self.module.train(self.module.parse_args(flags))

    def announce(self, writing: Callable[[], contextlib.AbstractContextManager]) -> None:
        """Have every checkpoint written within `writing()`."""

        def save(*args: Any) -> Path:
            with writing():
                return checkpoints.save_checkpoint(*args)

        loop.save_checkpoint = save  # type: ignore[assignment]

    def flags(self, data: Path, out: Path) -> list[str]:
        every = ["--output_dir", str(out), "--logging_steps", "1", "--checkpointing_steps", "1"]
        return [*every, *self.text.format(data=data).split()]


PICTURES = "--train_data_dir {data}/pictures --resolution 16 --train_batch_size 4"
JOBS = {
    "generator": Job(
        generator,
        PICTURES + " --channels 8,8,8 --latent_dim 8 --mapping_layers 2 --validation_steps 2 --use_noise --mirror"
        " --path_length_weight 2 --path_length_interval 2 --augment color,translation,cutout --r1_interval 2",
    ),
    "segmenter": Job(segmenter, PICTURES + " --channels 8,16 --lr_scheduler constant"),
    "fusion": Job(
        fusion,
        "--model {data}/model --pool_size 16 --train_batch_size 6 --hidden_width 8 --hidden_layers 1"
        " --validation_pairs 0 --static_steps 1 --realism_weight 0.1 --discriminator_learning_rate 0.001",
        steps=4,
    ),
    "encoder": Job(
        encoder,
        "--model {data}/model --cache_dir {data}/avatars --avatars 12 --train_batch_size 4 --eval_images 2"
        " --channels 8,16 --lr_scheduler constant --validation_steps 2",
        steps=4,
    ),
    "judges": Job(
        judges,
        "--model {data}/model --cache_dir {data}/avatars --avatars 12 --resolution 32 --train_batch_size 4"
        " --eval_avatars 2 --segmenter_channels 8,8 --discriminator_channels 8,8,8,8 --r1_interval 2",
        steps=3,
    ),
}


class Rendering:
    """`stylefusion render`, whose shards are what checkpoints are to a training."""

    def run(self, data: Path, out: Path) -> None:
        argv = f"render --random 30 --shard-size 4 --batch-size 2 --model {data}/pipeline --device cpu --out {out}"
        if cli.main(argv.split()):
            raise RuntimeError(argv)

    def announce(self, writing: Callable[[], contextlib.AbstractContextManager]) -> None:
        plain = rendering.write_shard

        @contextlib.contextmanager
        def shard(*args: Any) -> Iterator[Any]:
            with writing(), plain(*args) as write:
                yield write

        rendering.write_shard = shard


EVERY: dict[str, Any] = {**JOBS, "render": Rendering()}


def make_data(root: Path) -> Path:
    """A model folder and a whole pipeline (32 px), twelve labeled pictures of a disc (16 px); avatars come with the
    first run.
    """
    torch.manual_seed(0)
    tiny_pipeline(segmenter=True).save_pretrained(root / "pipeline")
    tiny_generator(use_noise=False).save_pretrained(root / "model" / "generator")
    tiny_segmenter().save_pretrained(root / "model" / "segmenter")
    StyleGAN2Discriminator(resolution=32, channels=[8] * 4).save_pretrained(root / "model" / "discriminator")
    random_state = np.random.RandomState(0)
    for kind in ("images", "labels"):
        (root / "pictures" / kind).mkdir(parents=True)
    ys, xs = np.mgrid[:16, :16]
    for i in range(12):
        cy, cx = random_state.randint(5, 11, 2)
        disc = (ys - cy) ** 2 + (xs - cx) ** 2 < 16
        colours = random_state.randint(0, 255, (2, 3))
        picture = np.where(disc[..., None], colours[0], colours[1]).astype(np.uint8)
        Image.fromarray(picture).save(root / f"pictures/images/{i:06d}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / f"pictures/labels/{i:06d}.png")
    (root / "pictures" / "dataset.json").write_text(json.dumps({"regions": ["background", "disc"]}))
    return root


# --- A training in a process of its own ------------------------------------------------------------------------------


def fork(action: Callable[[Callable[[str], None]], Any], log: Path) -> tuple[int, int]:
    """Run `action(tell)` in a child whose output goes to `log`; its process id, and the pipe that `tell` writes to."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.close(reader)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        torch.set_num_threads(1)
        action(lambda text: os.write(writer, (text + "\n").encode()) and None)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def watched(job: Any, data: Path, out: Path, tell: Callable[[str], None], kill_at: int | None) -> None:
    """Run a job that tells when the writing of a checkpoint begins and ends, and with how many file operations.

    kill_at: end this process at this file operation, counted over all writing.
    """
    seen, inside = 0, False

    def hook(event: str, details: tuple) -> None:
        nonlocal seen
        if inside and (event == "open" or event.startswith(("os.", "shutil."))):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def writing() -> Iterator[None]:
        nonlocal inside
        tell("writing")
        inside = True
        try:
            yield
        finally:
            inside = False
            tell(f"written {seen}")

    sys.addaudithook(hook)
    job.announce(writing)
    job.run(data, out)


class Watch:
    """Reads what a child tells, with the moment of each line."""

    def __init__(self, reader: int):
        self.reader, self.rest, self.lines = reader, b"", []  # type: ignore[var-annotated]
        self.open, self.started = True, time.monotonic()

    def until(self, moment: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Read until a moment, the child's end, or `stop()`."""
        while self.open and not stop() and (left := moment - time.monotonic()) > 0:
            if select.select([self.reader], [], [], left)[0]:
                found = os.read(self.reader, 65536)
                self.open = bool(found)
                *whole, self.rest = (self.rest + found).split(b"\n")
                self.lines += [(time.monotonic() - self.started, line.decode()) for line in whole]

    def writing(self) -> bool:
        return bool(self.lines) and self.lines[-1][1] == "writing"


# --- Results ---------------------------------------------------------------------------------------------------------


def results(out: Path) -> dict[str, str]:
    """Digests of what a finished run leaves: networks, pictures, and checkpoints but for their random states."""
    files = [p for p in sorted(out.rglob("*")) if p.suffix in (".safetensors", ".png", ".tar") or STATE.match(p.name)]
    return {str(p.relative_to(out)): checkpoints.sha256_of(p) for p in files}


def newest(out: Path) -> dict[str, int]:
    """The last whole checkpoint of every run below a folder; of a rendering, how many shards there are."""
    steps = {"shards": len(list(out.glob("shard-*")))}
    for path in out.rglob("checkpoint-*"):
        if path in checkpoints.list_checkpoints(path.parent) and checkpoints.damage(path) is None:
            steps[str(path.parent)] = max(steps.get(str(path.parent), 0), checkpoints.step_of(path))
    return steps


@dataclass
class Reference:
    """The undisturbed run: what it made, its seconds, and when it wrote."""

    made: dict[str, str]
    seconds: float
    writing: list[tuple[float, float]]
    operations: int


@dataclass
class Soak:
    """Cycles in a folder, and their counts."""

    root: Path
    seed: int = 0
    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw, self.references = random.Random(self.seed), {}  # type: ignore[var-annotated]
        self.data = self.root / "data"
        self.data.mkdir()
        if self._wait(*fork(lambda tell: make_data(self.data), self.root / "data.log")):
            raise RuntimeError((self.root / "data.log").read_text())

    def _wait(self, pid: int, reader: int) -> int:
        """The exit status of a child that nobody kills."""
        os.close(reader)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def reference(self, name: str) -> Reference:
        """Made twice, the second time with warm caches, whose times count."""
        if name not in self.references:
            made = []
            for again in range(2):
                out = self.root / f"{name}-{again}"
                pid, reader = fork(lambda tell, out=out: watched(EVERY[name], self.data, out, tell, None), log_of(out))
                watch = Watch(reader)
                watch.until(watch.started + 600)
                seconds = time.monotonic() - watch.started
                if self._wait(pid, reader):
                    raise RuntimeError(f"{name} fails undisturbed:\n{log_of(out).read_text()}")
                made.append(results(out))
                times = [t for t, _ in watch.lines]
                last = watch.lines[-1][1] if watch.lines else "written 0"
                spans = list(zip(times[::2], times[1::2], strict=True))
                self.references[name] = Reference(made[-1], seconds, spans, int(last.split()[1]))
                shutil.rmtree(out)
            if made[0] != made[1]:
                raise RuntimeError(f"{name} does not repeat itself: {differ(*made)}")
        return self.references[name]

    def cycle(self, name: str) -> None:
        """One training with one to three kills."""
        reference, draw = self.reference(name), self.draw
        out = self.root / "run"
        shutil.rmtree(out, ignore_errors=True)
        log_of(out).unlink(missing_ok=True)
        self.counts["cycles"] += 1
        had: dict[str, int] = {}
        kills = draw.randint(1, 3)
        for again in range(kills + 1):
            self.counts["resumes"] += again > 0
            status = self._disturbed(name, out, draw.choice(HOW) if again < kills else None, reference)
            has = newest(out)
            if any(has.get(run, 0) < step for run, step in had.items()):
                self.fail(name, f"a checkpoint was lost: {had} before, {has} after")
            had = has
            if status == 0:  # also where it was done before its kill came
                break
            if status != -signal.SIGKILL:
                self.fail(name, log_of(out).read_text()[-3000:])
                return
        made = results(out)
        if made != reference.made:
            self.fail(name, differ(reference.made, made))
        else:
            self.counts["bit-identical"] += 1

    def _disturbed(self, name: str, out: Path, how: str | None, reference: Reference) -> int:
        """Start or resume, and kill it in this way; its exit status."""
        draw = self.draw
        kill_at = draw.randint(1, max(reference.operations // 2, 1)) if how == HOW[2] else None
        job = EVERY[name]
        pid, reader = fork(lambda tell: watched(job, self.data, out, tell, kill_at), log_of(out))
        watch = Watch(reader)
        end = watch.started + 600
        if how == HOW[0]:
            watch.until(watch.started + draw.uniform(0, reference.seconds))
        elif how == HOW[1]:
            at = draw.randrange(max(len(reference.writing) // 2, 1))  # a resumed run writes fewer
            watch.until(end, lambda: sum(line == "writing" for _, line in watch.lines) > at)
            begin, finish = reference.writing[at]
            watch.until(time.monotonic() + draw.uniform(0, finish - begin))
        else:
            watch.until(end)
        if watch.open:
            os.kill(pid, signal.SIGKILL)
        watch.until(end)
        status = self._wait(pid, reader)
        if status == -signal.SIGKILL:
            self.counts["kills"] += 1
            self.counts["kills while a checkpoint was written"] += watch.writing()
        return status

    def fail(self, name: str, why: str) -> None:
        self.failures.append(f"{name} in cycle {self.counts['cycles']}: {why}")
        print(self.failures[-1], file=sys.stderr)


def log_of(out: Path) -> Path:
    return out.with_name(out.name + ".log")


def differ(one: dict, other: dict) -> str:
    return f"differs in {sorted(k for k in {*one, *other} if one.get(k) != other.get(k))}"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cycles", type=int, default=100)
    p.add_argument("--only", choices=EVERY, nargs="+", default=list(EVERY), help="these jobs, in turn")
    p.add_argument("--seed", type=int, default=0, help="of the kills")
    args = p.parse_args(argv)
    torch.set_num_threads(1)  # children are forked
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), args.seed)
        for i in range(args.cycles):
            name = args.only[i % len(args.only)]
            soak.cycle(name)
            print(f"cycle {i + 1} of {args.cycles}, {name}: {dict(soak.counts)}", file=sys.stderr, flush=True)
    print(json.dumps(dict(soak.counts) | {"failures": len(soak.failures)}))
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
