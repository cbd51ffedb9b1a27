"""What fits into memory: the planner's arithmetic, and that parts of a batch train what the whole batch does."""

from dataclasses import replace

import pytest
import torch

from stylefusion_hf.core import memory
from stylefusion_hf.core.memory import GIB, MemoryPlan, chunk_size, even_parts, plan_pool, plan_step
from stylefusion_hf.regions import distillation
from stylefusion_hf.regions.distillation import distil
from stylefusion_hf.training import fusion_setup
from stylefusion_hf.training.choices import Shares
from tests.tiny import tiny_generator
from tests.training.test_criterion import criterion, pipe  # noqa: F401

CPU = torch.device("cpu")


def test_budgets():
    assert memory.memory_budget(CPU) == 8 * GIB
    assert memory.memory_budget(CPU, 2.5) == int(2.5 * GIB)
    for wrong in (0.1, -1, float("nan")):
        with pytest.raises(ValueError, match="--memory_gib must be at least 0.5"):
            memory.memory_budget(CPU, wrong)


def test_chunks_fit_and_are_at_least_one():
    assert chunk_size(100, 1000, 64) == 10
    assert chunk_size(100, 1000, 4) == 4
    assert chunk_size(100, 10, 4) == 1
    assert chunk_size(0, 10, 4) == 4
    assert even_parts(10, 4) == [4, 3, 3]
    assert even_parts(8, 4) == [4, 4]
    assert even_parts(3, 16) == [3]


def test_pools_take_their_share_and_lie_where_they_fit():
    picture = memory.pool_picture_bytes(256, 6)
    assert picture == 256**2 * 16
    plan = plan_pool(8 * GIB, "cpu", 256, 6, batch=16, forward=GIB // 10)
    assert plan.pool_device == "cpu"
    assert plan.pool_size == 2 * GIB // picture == 2048
    assert plan.pool_bytes <= 2 * GIB
    assert plan.render == 12  # 15 % of 8 GiB, a tenth of a GiB each
    small = plan_pool(8 * GIB, "cpu", 64, 6, batch=16, forward=1)
    assert (small.pool_size, small.render) == (3072, 64)
    # A GPU whose share does not hold the pool leaves it to the host; a larger one keeps it.
    assert plan_pool(8 * GIB, "cuda", 256, 6, 16, 1).pool_device == "cpu"
    assert plan_pool(8 * GIB, "cuda", 256, 6, 16, 1).pool_size == 3072
    large = plan_pool(80 * GIB, "cuda", 256, 6, 16, 1)
    assert (large.pool_device, large.pool_size) == ("cuda", 3072)
    wanted = plan_pool(8 * GIB, "cpu", 1024, 6, 16, 1, wanted=5000)
    assert wanted.pool_size == 5000  # what was asked for is kept
    assert plan_pool(GIB // 2, "cpu", 1024, 6, 16, 1).pool_size == memory.POOL_LEAST


def test_steps_are_split_into_parts_that_fit(caplog):
    plan = MemoryPlan(8 * GIB, 256, 100, "cpu", GIB, batch=16)
    found = plan_step(plan, GIB // 2)
    assert found.chunk == 6  # 40 % of 8 GiB
    assert found.step_bytes == 3 * GIB
    assert "A step of 16 samples at 256 px in parts of 6 takes about 3.00 GiB" in found.describe()
    assert "the pool of 100 pictures 1.00 GiB on the cpu" in found.describe()
    assert "parts" not in plan_step(plan, 1000).describe()
    assert plan_step(plan, 20 * GIB).chunk == 1
    assert "a smaller --train_resolution needs less" in caplog.text


def test_saved_bytes_are_what_autograd_keeps():
    weight = torch.randn(50, 100, requires_grad=True)
    x = torch.randn(30, 100, requires_grad=True)

    def compute() -> torch.Tensor:
        return torch.nn.functional.linear(x, weight).tanh().exp().sum()

    # The input, tanh's result and exp's; the weight is there anyway.
    assert memory.backward_bytes(compute, [weight]) == (30 * 100 + 2 * 30 * 50) * 4 * 3 // 2
    assert memory.backward_bytes(compute, []) > memory.backward_bytes(compute, [weight])


def test_parts_keep_twins_together_and_sum_to_the_whole(pipe):  # noqa: F811
    c = criterion(pipe, features=("maps", "texture"), reference="warped")
    shares = Shares(codes=(0.2, 0.5, 0.1, 0.2), twin=0.8)
    sample = c.draw(13, torch.Generator().manual_seed(3), shares)
    assert (sample.twin >= 0).any()
    torch.manual_seed(0)
    fused = torch.randn(13, pipe.generator.style_dim)

    def gradient(most: int) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
        codes = fused.clone().requires_grad_()
        losses, tally, start = {}, 0, 0
        for part in sample.parts(most):
            found = c.networks(codes[start : start + len(part)])
            terms, some = c(part, c.targets(part), found, torch.tensor([0.1, 0.5, 0.9]), batch=sample)
            c.total(terms).backward()
            losses = {name: losses.get(name, 0.0) + value.item() for name, value in terms.items()}
            tally, start = tally + some, start + len(part)
        assert start == 13
        return losses, codes.grad, tally

    whole, wanted, counted = gradient(13)
    assert {"outside", "locality", "transfer", "pose", "layout", "spatial", "pooled"} <= set(whole)
    for most in (5, 2, 1):
        parts = list(sample.parts(most))
        assert max(map(len, parts)) <= max(most, 2)
        assert all((p.twin < len(p)).all() and p.twin[0] < 0 for p in parts)
        losses, found, tally = gradient(most)
        for name, value in whole.items():
            assert losses[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert (found - wanted).norm() < 2e-3 * wanted.norm()
        torch.testing.assert_close(tally, counted)


def test_a_distilled_segmenter_does_not_depend_on_its_parts(monkeypatch):
    g = tiny_generator()

    def teacher(images, maps):
        return torch.stack([images[:, 0], images[:, 1], images[:, 2]], dim=1) * 9

    def student():
        return distil(g, teacher, ["a", "b", "c"], samples=16, steps=3, batch=6, channels=[8, 8], progress=False)[0]

    whole = student()
    monkeypatch.setattr(distillation, "chunk_size", lambda each, budget, most: min(2, most))
    for (name, a), b in zip(whole.named_parameters(), student().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-2, msg=name)


def test_a_training_in_parts_trains_the_same_nets(tmp_path, monkeypatch):
    from stylefusion_hf import FusionHierarchy
    from stylefusion_hf.training import fusion
    from tests.training.test_fusion_training import fusion_args, save_base

    base = save_base(tmp_path)

    def nets(name: str) -> FusionHierarchy:
        fusion.train(fusion_args(base, tmp_path / name, "--max_train_steps", "2", "--static_steps", "0"))
        return FusionHierarchy.from_pretrained(tmp_path / name, subfolder="fusion")

    whole = nets("whole")
    monkeypatch.setattr(fusion_setup, "plan_step", lambda plan, each: replace(plan_step(plan, each), chunk=2))
    for (name, a), b in zip(whole.named_parameters(), nets("parts").named_parameters(), strict=True):
        torch.testing.assert_close(a, b[1], atol=2e-3, rtol=1e-2, msg=name)
