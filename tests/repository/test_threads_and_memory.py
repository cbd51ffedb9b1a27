"""One pipeline in many threads gives what it gives one after another; many calls leave memory where it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Generator
from tests.endurance import pipelines
from tests.refusals import TRIED
from tests.tiny import RESOLUTION

THREADS = 8
CALLS = 24  # of each pipeline, for memory
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipes() -> tuple[Any, Any, Any]:
    return pipelines()


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """`work` of 0, 1, ..., in eight threads that start together."""
    start = Barrier(THREADS)

    def first_together(k: int) -> Any:
        if k < THREADS:
            start.wait(timeout=60)
        return work(k)

    TRIED["calls in threads"] += count
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(first_together, range(count)))


def call_fuse(pipe: Any, k: int) -> torch.Tensor:
    noise = {"noise_mode": "random", "generator": torch.Generator().manual_seed(k)} if k % 3 == 0 else {}
    out = pipe(base=[k, 2 * k], regions={"hair": 3 * k}, strength=0.5, output_masks=True, output_type="pt", **noise)
    masks = torch.stack(list(out.masks.values())).float()
    return torch.cat([out.images.flatten(), out.style_codes.flatten(), masks.flatten()])


def call_walk(pipe: Any, k: int) -> torch.Tensor:
    return pipe(base=[k, k + 1], frames=3 + k % 3, space=("w", "s", "z")[k % 3], output_type="pt").frames


def call_invert(pipe: Any, k: int) -> torch.Tensor:
    image = torch.rand(1, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(k))
    return pipe(image, num_inference_steps=3, num_tuning_steps=2, output_type="pt").images


@pytest.mark.parametrize(("index", "call"), enumerate((call_fuse, call_walk, call_invert)))
def test_threads_make_the_same_pictures(index, call):
    pipe, count = pipelines()[index], 16 if index == 2 else 32
    together = in_threads(lambda k: call(pipe, k), count)  # first, so that they meet what is made at first use
    for k, made in enumerate(together):
        assert torch.equal(made, call(pipe, k)), f"call {k}"


def test_an_interruption_stops_its_own_call_only(pipes):
    image, seen = torch.full((1, 3, RESOLUTION, RESOLUTION), 0.5), Barrier(2)

    def run(k: int) -> int:
        def watch(pipe: Any, step: int, *rest: Any) -> None:
            if step == 0:
                seen.wait(timeout=60)  # both are under way
                pipe.interrupt = k == 0
                seen.wait(timeout=60)

        return int(pipes[2](image, num_inference_steps=4, callback_on_step_end=watch).steps[0])

    with ThreadPoolExecutor(2) as pool:
        stopped, whole = pool.map(run, range(2))
    assert stopped < whole
    assert pipes[2].interrupt is False


def test_loading_in_threads_leaves_the_default_dtype(tmp_path):
    StyleGAN2Generator(resolution=8, channels=[8, 8], z_dim=8, w_dim=8).save_pretrained(tmp_path)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float32)
    loaded = in_threads(lambda k: StyleGAN2Generator.from_pretrained(tmp_path, dtype=kinds[k % 4]), 32)
    assert [model.dtype for model in loaded] == [kinds[k % 4] for k in range(32)]
    assert torch.get_default_dtype() == torch.float32


FIRST_USE = """
import sys, threading
names = sys.argv[1].split(",")
import stylefusion_hf
start, failed, seeds = threading.Barrier(len(names)), [], []
def work(name):
    try:
        start.wait()
        getattr(stylefusion_hf, name)
        pipe = stylefusion_hf.StyleFusionPipeline.from_embedded()
        seeds.append(float(pipe(base=3, regions={"hair": 4}, output_type="pt").images.sum()))
    except BaseException as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed, len(seeds), len(set(seeds)))
sys.exit(bool(failed) or len(set(seeds)) != 1)
"""


def test_first_use_from_eight_threads():
    """Imports, the embedded model and the choice of operators, all met for the first time by eight threads at once."""
    names = "Code,FusionHierarchy,StyleFusionPipeline,RegionTree,ImageEncoder,Direction,StyleGAN2Generator,ModelMixin"
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE, names], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


# --- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("leak", [0, 400_000], ids=["as it is", "two pictures of 128 pixels a call are kept"])
def test_many_calls_leave_memory_where_it_was(leak):
    """In a process of its own: what earlier tests left behind is freed at any time. A leak would be seen."""
    TRIED["calls for memory"] += CALLS
    command = [sys.executable, "-m", "tests.endurance", "--calls", str(CALLS), "--leak", str(leak)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert "over the last" in done.stdout and done.returncode == (leak > 0), done.stdout + done.stderr[-2000:]


def test_a_pipeline_that_is_dropped_is_freed():
    import gc
    import weakref

    pipe: Any = StyleFusionPipeline(*pipelines()[0].components.values())
    pipe(base=1)
    gone = weakref.ref(pipe.generator), weakref.ref(pipe)
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
