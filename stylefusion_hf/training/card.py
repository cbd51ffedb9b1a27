"""The model card of trained fusion nets: what they are, how they were trained, and what the ruler measured."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from stylefusion_hf.conversion.credits import CREDITS, LIMITS
from stylefusion_hf.conversion.report import LICENSES
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.hub_files import is_hub_id
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.core.region_tree import RegionTree

HEAD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [{architecture}, stylefusion, image-editing]
---
# {title}

Fusion nets (StyleFusion, [arXiv 2107.07437](https://arxiv.org/abs/2107.07437)) that turn one code per region into one
picture of a frozen {generator}. {how}

Regions: `{tree}`

```python
from stylefusion_hf import StyleFusionPipeline

pipe = StyleFusionPipeline.from_pretrained("{title}")
picture = pipe(base=1, regions={{"{leaf}": 2}}).images[0]
```
"""
TRAINED = """Trained with stylefusion-hf without a training picture, on {objective}. The authors'
training code is not public: both objectives of this package are reconstructions."""
MEASURED = """Made by stylefusion-hf without training: each gate is a constant, measured on
{pictures} pictures of the generator. A style number goes to the regions that it drives most."""
MEASURING = ("start_pictures", "train_resolution", "min_psi", "mixed_share", "seed")
CONVERSION = "conversion.json"  # of `stylefusion convert`
GENERATORS = ("StyleGAN2Generator", "MobileStyleGANGenerator", "StyleGAN3Generator")
OBJECTIVES = {
    "composed": "the composed objective, which is this package's own",
    "contrastive": "the contrastive objective, built from the paper's description",
}
ABOUT = (
    "objective",
    "gates",
    "train_resolution",
    "full_resolution_steps",
    "seed",
    "max_train_steps",
    "static_steps",
    "train_batch_size",
    "learning_rate",
    "reference",
    "features",
)


def number(value: float, digits: int = 2) -> str:
    """Format a figure; NaN is "undefined"."""
    return f"{value:.{digits}f}" if value == value else "undefined"


def model_card(
    args: argparse.Namespace,
    tree: RegionTree,
    figures: Mapping[str, float],
    seconds: float,
    dead: Sequence[str] = (),
) -> str:
    """Return the card as Markdown, with metadata for the Hub.

    Args:
        figures: from `evaluation.brief`; may be empty.
        seconds: duration of the training.
        dead: nodes whose dial does nothing, according to `CollapseGuard`.
    """
    measured = args.max_train_steps == 0
    title = args.hub_model_id or str(args.output_dir).rstrip("/").rsplit("/", 1)[-1]
    how = TRAINED.format(objective=OBJECTIVES[args.objective])
    if measured:
        how = MEASURED.format(pictures=args.start_pictures)
    kind = source_kind(args.pretrained_model_name_or_path)
    generator = source_generator(args.pretrained_model_name_or_path)
    names = {"architecture": generator.lower(), "generator": generator, "how": how}
    lines = [HEAD.format(title=title, tree=tree, leaf=tree.leaves[0], **names)]
    if kind in LICENSES:
        lines += ["## License", "", LICENSES[kind], ""]
    if segmenter := getattr(args, "segmenter", None):
        name = str(segmenter) if is_hub_id(segmenter) else Path(segmenter).name
        how = f"The segmenter is {name}, whose weights are part of this folder: its license applies to them."
        if getattr(args, "distil_segmenter", False) and not getattr(args, "regions", None):
            how = f"The segmenter learned its regions from {name}: check that model's license."
        lines += [how, ""]
    if regions := getattr(args, "regions", None):
        how = "were found in the generator's features" if regions == "auto" else "come from `stylefusion regions`"
        lines += [f"The regions {how}. The judge below is another network that learned from the same labels.", ""]
    if figures:
        lines += figure_lines(args, tree, figures)
    if dead:
        lines += [f"**Collapsed:** the dial of {', '.join(dead)} does nothing.", ""]
    if kind in CREDITS:
        lines += ["## Credits", "", CREDITS[kind], "", "## Limits", "", LIMITS[kind], ""]
    flags = [*ABOUT, *(k for k in vars(args) if k.endswith("_weight"))]
    flags = list(MEASURING) if measured else flags
    lines += [
        "## Measuring" if measured else "## Training",
        "",
        f"{seconds / 60:.0f} minutes since the run was last started.",
        "",
        "| flag | value |",
        "|---|---|",
        *(f"| `--{name}` | {getattr(args, name)} |" for name in flags),
        "",
    ]
    return "\n".join(lines)


def figure_lines(args: argparse.Namespace, tree: RegionTree, figures: Mapping[str, float]) -> list[str]:
    """Return the card's section on the ruler's figures."""
    return [
        f"## Figures ({args.validation_pairs} validation pairs)",
        "",
        "Outside change O: 0 if nothing but the region changed, 1 as if the whole code were swapped. Transfer T: 0"
        " if the region kept its look, 1 if it has the source's. Measured by the ruler of stylefusion-hf, whose"
        " judges took no part in the training.",
        "",
        "| region | O | T |",
        "|---|---|---|",
        *(f"| {leaf} | {number(figures[f'O {leaf}'], 3)} | {number(figures[f'T {leaf}'])} |" for leaf in tree.leaves),
        "",
        f"All common codes from a third picture: pose error {number(figures['G'])} (0: that picture's pose, 1:"
        f" still the base's), {number(figures['kept'])} of the looks kept.",
        "",
    ]


def source_kind(model: str | None) -> str | None:
    """Return the kind of the checkpoint that a model folder was converted from, as its conversion.json says."""
    try:
        kind = read_object(Path(find_model(model or ""), CONVERSION)).get("kind")
    except (OSError, ValueError):
        return None
    return kind if isinstance(kind, str) else None


def source_generator(model: str | None) -> str:
    """Return the architecture of a model folder's generator, as its config.json says; "StyleGAN2" if it has none."""
    try:
        kind = read_object(Path(find_model(model or ""), "generator", "config.json")).get("_class_name")
    except (OSError, ValueError):
        kind = None
    return kind.removesuffix("Generator") if kind in GENERATORS else "StyleGAN2"


def keep_source(model: str | None, folder: Path) -> None:
    """Copy the report of the model's conversion, if it is a converted folder: its license holds for the result too."""
    if source_kind(model) is not None:
        write_json(folder / CONVERSION, read_object(Path(find_model(model or ""), CONVERSION)), indent=2)
