"""Train the fusion nets of a region tree for a frozen StyleGAN2, without a single training image.

    accelerate launch -m stylefusion_hf.training.fusion --model FOLDER --output_dir runs/fusion --tree avatar

FOLDER holds generator/ and segmenter/ (and, for the realism term, discriminator/). Latents are sampled; a pool of
plain images with their label maps is drawn once; each step mixes codes of the pool by the tree and pulls the fused
image towards the picture that `objectives.py` puts together from the sources' own images. An objective of our own
making: the paper's training code was never published.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from stylefusion_hf.alignment import static_regions
from stylefusion_hf.features import channel_energies
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion import FusionHierarchy
from stylefusion_hf.models.generator import StyleGAN2Generator
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.regions import RegionTree
from stylefusion_hf.training import objectives as obj
from stylefusion_hf.training.common import (
    Log,
    State,
    build_schedule,
    common_parser,
    ema_update,
    finishing,
    image_grid,
    push_to_hub,
    resume,
    save_checkpoint,
    start,
    step_generator,
    sync_when,
)

CODES = 3  # codes that meet in one training sample: the base and two others


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common_parser(
        "stylefusion train fusion",
        "Train fusion nets for a frozen generator.",
        learning_rate=3e-3,
        train_batch_size=16,
        max_train_steps=4000,
        lr_scheduler="cosine",
        lr_warmup_steps=20,
        max_grad_norm=1.0,
    )
    p.add_argument(
        "--tree",
        default="avatar",
        help="a preset (avatar, ffhq, car, church), or text such as 'all*(face*(mouth, skin), hair)'",
    )
    p.add_argument("--pool_size", type=int, default=4096, help="plain images that are drawn once and mixed ever after")
    p.add_argument(
        "--pose_regions", help="regions whose places tell the pose; the leaves of the root's first child if left out"
    )
    p.add_argument(
        "--static_regions",
        help="regions that do not move with the pose; those named bg... or background... if left out",
    )
    p.add_argument("--min_psi", type=float, default=0.6, help="codes are truncated by a random psi between this and 1")
    p.add_argument("--hidden_width", type=int, default=192, help="of the gating MLPs")
    p.add_argument("--hidden_layers", type=int, default=2, help="of the gating MLPs")
    p.add_argument(
        "--common_resolution",
        type=int,
        default=16,
        help="layers up to this size in pixels are aligned to the common code",
    )
    p.add_argument("--transfer_weight", type=float, default=1.0)
    p.add_argument("--locality_weight", type=float, default=1.0)
    p.add_argument("--layout_weight", type=float, default=0.3)
    p.add_argument("--realism_weight", type=float, default=0.02, help="0 needs no discriminator")
    p.add_argument("--gate_learning_rate", type=float, default=2e-2, help="of the constant part of the gates")
    p.add_argument("--ema_decay", type=float, default=0.995)
    return p.parse_args(argv)


# --- Pool and samples ------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """N plain samples: style codes (N, S), images (N, 3, H, W) as uint8, label maps (N, H, W) as uint8."""

    styles: Tensor
    images: Tensor
    labels: Tensor

    def pictures(self, index: Tensor) -> Tensor:
        """Images in [-1, 1], shape of `index` + (3, H, W)."""
        return self.images[index].float().div(127.5).sub(1)


@torch.no_grad()
def draw_pool(
    g: StyleGAN2Generator, segmenter: RegionSegmenter, order: list[int], size: int, min_psi: float, seed: int
) -> Pool:
    """`order[i]` is the segmenter's channel of the tree's i-th region, back to front."""
    draw = step_generator(seed, 0, purpose=2)
    styles, images, labels = [], [], []
    for first in tqdm(range(0, size, 64), desc="pool", leave=False):
        n = min(64, size - first)
        w = g.mapping(torch.randn(n, g.config.z_dim, generator=draw).to(g.w_avg))
        psi = (torch.rand(n, 1, generator=draw) * (1 - min_psi) + min_psi).to(w)
        s = g.to_style(g.w_avg + psi * (w - g.w_avg))
        x = g.synthesis(s).clamp(-1, 1)
        styles.append(s)
        images.append(x.add(1).mul(127.5).round().to(torch.uint8))
        labels.append(segmenter.segment(x)[:, order].argmax(1).to(torch.uint8))
    return Pool(torch.cat(styles), torch.cat(images), torch.cat(labels))


def draw_assignment(tree: RegionTree, batch: int, draw: torch.Generator) -> Tensor:
    """Which of a sample's codes each node takes: (B, nodes) in 0 .. CODES - 1, nodes in `tree.nodes`' order; 0 is the
    base.

    40 % swap one leaf, 15 % a whole subtree, 25 % take every inner code (or the root's alone) from elsewhere, 20 % mix
    all leaves.
    """
    nodes = {name: i for i, name in enumerate(tree.nodes)}
    assignment = torch.zeros(batch, len(nodes), dtype=torch.long)

    def pick(options) -> int:
        return int(torch.randint(len(options), (1,), generator=draw))

    subtrees = [n for n in tree.inner if n != tree.root]
    for row, kind in zip(assignment, torch.rand(batch, generator=draw).tolist(), strict=True):
        if kind < 0.4 or (kind < 0.55 and not subtrees):
            row[nodes[tree.leaves[pick(tree.leaves)]]] = 1
        elif kind < 0.55:
            for name in tree.subtree(subtrees[pick(subtrees)]):
                row[nodes[name]] = 1
        elif kind < 0.8:
            for name in tree.inner if kind < 0.675 else [tree.root]:
                row[nodes[name]] = 1
        else:
            for name in tree.leaves:
                row[nodes[name]] = pick(range(CODES))
            common = pick(range(CODES))
            for name in tree.inner:
                row[nodes[name]] = common
    return assignment


def mix(tree: RegionTree, styles: Tensor, assignment: Tensor) -> dict[str, Tensor]:
    """Codes (B, CODES, S) and an assignment (B, nodes) -> {node: (B, S)}."""
    rows = torch.arange(len(styles), device=styles.device)
    return {name: styles[rows, assignment[:, i]] for i, name in enumerate(tree.nodes)}


# --- The step --------------------------------------------------------------------------------------------------------


class Objective:
    """The loss of fused codes: the frozen networks, the pool, the roles of the regions, the weights."""

    def __init__(self, args, tree: RegionTree, g, segmenter, discriminator, accelerator: Accelerator):
        self.args, self.tree, self.g, self.segmenter, self.d = args, tree, g, segmenter, discriminator
        names = list(segmenter.config.regions)
        missing = [leaf for leaf in tree.leaves if leaf not in names]
        if missing:
            raise ValueError(f"the segmenter knows {', '.join(names)}, but not the tree's {', '.join(missing)}")
        inert = [leaf for leaf in tree.leaves if leaf not in tree.active]
        if inert:
            raise ValueError(
                f"nothing to train for {', '.join(inert)}: a node above has no fusion net, so their codes play no"
                f" part; mark it with * in --tree {tree}"
            )
        self.regions = [name for name in names if name in tree.leaves]  # back to front
        self.order = [names.index(name) for name in self.regions]
        self.pose = self._choose(args.pose_regions, "--pose_regions", self._default_pose())
        self.static = self._choose(args.static_regions, "--static_regions", static_regions(self.regions))
        self.device = accelerator.device
        self.leaf_columns = torch.tensor([tree.nodes.index(n) for n in self.regions], device=self.device)
        self.root_column = tree.nodes.index(tree.root)
        self.pool = draw_pool(g, segmenter, self.order, args.pool_size, args.min_psi, args.seed)

    def _default_pose(self) -> list[str]:
        first = self.tree.children(self.tree.root)[0]
        return [n for n in self.tree.subtree(first) if n in self.tree.leaves]

    def _choose(self, given: str | None, flag: str, default: list[str]) -> list[int]:
        names = default if given is None else [n.strip() for n in given.split(",") if n.strip()]
        unknown = [n for n in names if n not in self.regions]
        if unknown:
            raise ValueError(f"{flag}: {unknown[0]!r} is no region of the tree; it has {', '.join(self.regions)}")
        return [self.regions.index(n) for n in names]

    def sample(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of the pool (B, CODES) and an assignment (B, nodes)."""
        size = (self.args.train_batch_size, CODES)
        index = torch.randint(len(self.pool.styles), size, generator=draw).to(self.device)
        return index, draw_assignment(self.tree, size[0], draw).to(self.device)

    def losses(self, fused: Tensor, index: Tensor, assignment: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Mean losses by name, and the fused images."""
        rows = torch.arange(len(index), device=self.device)
        images, labels = self.pool.pictures(index), self.pool.labels[index].long()
        source, pose = assignment[:, self.leaf_columns], assignment[:, self.root_column]
        with torch.no_grad():
            target, owner, layout = obj.compose_target(images, labels, source, pose, self.pose, self.static)
            other = images[rows, torch.where(pose == 0, 1, 0)]
            reference, pose_labels = images[rows, pose], labels[rows, pose]
        image = self.g.synthesis(fused)
        locality, transfer = obj.locality_and_transfer(image, target, owner, source != pose[:, None], reference, other)
        out = {"transfer": transfer.mean(), "locality": locality.mean()}
        if self.args.layout_weight:
            out["layout"] = obj.layout_loss(self.segmenter.segment(image)[:, self.order], layout, pose_labels).mean()
        if self.args.realism_weight and self.d is not None:
            out["realism"] = F.softplus(-self.d(image).logits).mean()
        return out, image

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.args, f"{name}_weight") * value for name, value in losses.items()]).sum()


@torch.no_grad()
def start_gates(fusion: FusionHierarchy, energies: Tensor, regions: list[str], floor: float = 0.02) -> None:
    """Constant gates that give every style channel to the child whose regions it drives most.

    energies: (R, S) from `features.channel_energies`, rows as `regions`. Alignment starts undecided, at one half.
    """
    tree, row = fusion.tree, {name: i for i, name in enumerate(regions)}
    for name in tree.fused:
        first, second = (
            energies[[row[leaf] for leaf in tree.subtree(child) if leaf in row]].sum(0).sqrt()
            for child in tree.children(name)
        )
        gate = second / (first + second).clamp_min(1e-12)
        fusion.set_constant_gates(name, segments=gate.clamp(floor, 1 - floor), common=0.5)


def build_fusion(args: argparse.Namespace, g: StyleGAN2Generator) -> FusionHierarchy:
    """New nets, small ones that start as constant gates."""
    layers = sum(4 * 2 ** ((i + 1) // 2) <= args.common_resolution for i in range(len(g.conv_sizes)))
    rgbs = sum(4 * 2**k <= args.common_resolution for k in range(len(g.rgb_sizes)))
    return FusionHierarchy(
        tree=RegionTree.of(args.tree).to_dict(),
        conv_sizes=g.conv_sizes,
        rgb_sizes=g.rgb_sizes,
        padded_width=max(g.conv_sizes + g.rgb_sizes),
        hidden_width=args.hidden_width,
        hidden_layers=args.hidden_layers,
        num_indicators=len(g.conv_sizes) + len(g.rgb_sizes),
        indicator_repeats=1,
        shared_indicators=False,
        common_conv_layers=layers,
        common_rgb_layers=rgbs,
        lr_multiplier=1.0,
        pooling="mean",
        final_activation="linear",
        gate_bias=True,
    )


def load_frozen(args: argparse.Namespace, accelerator: Accelerator):
    """Generator, segmenter and (if the realism term wants it) discriminator of the given folder, frozen."""
    if not args.pretrained_model_name_or_path:
        raise ValueError("--model is missing: a folder or Hub id that holds generator/ and segmenter/")
    where = {"revision": args.revision, "variant": args.variant}

    def load(cls: Any, name: str) -> Any:
        model = cls.from_pretrained(args.pretrained_model_name_or_path, subfolder=name, **where)
        return model.eval().requires_grad_(False).to(accelerator.device)

    g, segmenter = load(StyleGAN2Generator, "generator"), load(RegionSegmenter, "segmenter")
    return g, segmenter, load(StyleGAN2Discriminator, "discriminator") if args.realism_weight else None


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the output folder: a pipeline that `from_pretrained` loads."""
    accelerator = start(args)
    torch.manual_seed(args.seed)
    tree = RegionTree.of(args.tree)
    g, segmenter, discriminator = load_frozen(args, accelerator)
    objective = Objective(args, tree, g, segmenter, discriminator, accelerator)
    fusion = build_fusion(args, g).to(accelerator.device)
    probe = slice(0, min(64, args.pool_size))
    pool = objective.pool
    energies = channel_energies(
        g.synthesis, pool.styles[probe], pool.labels[probe], len(objective.regions), seed=args.seed
    )
    start_gates(fusion, energies, objective.regions)
    ema = FusionHierarchy.from_config(fusion.config).to(accelerator.device).requires_grad_(False).eval()
    ema.load_state_dict(fusion.state_dict())
    constant = [p for name, p in fusion.named_parameters() if name.endswith("gate_bias")]
    learned = [p for name, p in fusion.named_parameters() if not name.endswith("gate_bias")]
    optimizer = torch.optim.Adam(
        [{"params": learned}, {"params": constant, "lr": args.gate_learning_rate}],
        lr=args.learning_rate,
        betas=(0.9, 0.99),
    )
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(fusion, optimizer)
    accelerator.register_for_checkpointing(State(ema=ema, schedule=schedule))
    first = resume(accelerator, args)
    log, folder = Log(accelerator, args), Path(args.output_dir)
    with (
        finishing(accelerator),
        tqdm(total=args.max_train_steps, initial=first, disable=not accelerator.is_main_process, desc="fusion") as bar,
    ):
        for step in range(first, args.max_train_steps):
            draw = step_generator(args.seed, step, accelerator.process_index)
            optimizer.zero_grad()
            for i in range(args.gradient_accumulation_steps):
                index, assignment = objective.sample(draw)
                with sync_when(accelerator, model, i == args.gradient_accumulation_steps - 1):
                    fused = model(mix(tree, pool.styles[index], assignment)).style_codes
                    losses, _ = objective.losses(fused, index, assignment)
                    accelerator.backward(objective.total(losses) / args.gradient_accumulation_steps)
                log.add(**losses)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            ema_update(ema, fusion, min(args.ema_decay, (step + 1) / (step + 10)) if args.use_ema else 0.0)
            done = step + 1
            bar.update()
            if done % args.logging_steps == 0 or done == args.max_train_steps:
                log.report(done, bar)
            if args.validation_steps and done % args.validation_steps == 0 and accelerator.is_main_process:
                save_sheet(ema, objective, folder / "samples" / f"{done:06d}.png")
            if done % args.checkpointing_steps == 0 or done == args.max_train_steps:
                save_checkpoint(accelerator, args, done)
                if accelerator.is_main_process:
                    ema.save_pretrained(folder / "fusion")
        if accelerator.is_main_process:
            StyleFusionPipeline(g, ema, segmenter).save_pretrained(folder)
            push_to_hub(args, folder / "fusion")
    return folder


@torch.no_grad()
def save_sheet(fusion: FusionHierarchy, objective: Objective, path: Path, rows: int = 6) -> None:
    """Rows of the pool: base, source, one swapped leaf a column, and the base with all inner codes of the source."""
    tree, pool = objective.tree, objective.pool
    base, source = pool.styles[:rows], pool.styles[rows : 2 * rows]
    nodes = [[name] for name in tree.leaves] + [list(tree.inner)]
    codes = {name: torch.cat([source if name in swapped else base for swapped in nodes]) for name in tree.nodes}
    fused = fusion.fuse(codes)
    images = objective.g.synthesis(torch.cat([base, source, fused]))
    columns = len(images) // rows
    images = images.unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns).save(path)


def main(argv: list[str] | None = None) -> None:
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    main()
