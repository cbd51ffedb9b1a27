"""`convert(source, destination)`: a third-party checkpoint -> a folder that `from_pretrained` loads.

The stages are modules of their own, and this one calls them in order: reading (`safe_pickle`), detecting (`sources`),
renaming (`layouts`, `nvidia`, `rosinality`), writing (`writing`), checking (`checks`) and reporting (`report`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import __version__ as diffusers_version

from stylefusion_hf.conversion import checks, direction_files, directions, hierarchy, ir_files, mobile_graph
from stylefusion_hf.conversion.companions import Companions, find_companions
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.previews import describe_previews, fit_previews
from stylefusion_hf.conversion.report import Report, model_card, printable
from stylefusion_hf.conversion.sources import KINDS, Source, read_source
from stylefusion_hf.conversion.writing import check_destination, estimate_mean, release, replace_folder, save_model
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.edits import save_directions
from stylefusion_hf.core.files import sha256_of, write_json, write_text
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.core.sizes import describe_size, size_at
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import check_ordinary, load_mapped
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.models.stylegan3 import StyleGAN3Generator

PSI = 0.7  # default truncation if the source does not specify one
MEAN_SAMPLES = 4096  # to estimate the mean of w, as many as the StyleFusion authors draw
SIZE = r"\d+(\.\d+)?[KMGT]B"
TREE_ROOT = "all"  # the only region of a generator without fusion nets


@dataclass
class Options:
    """Options of a conversion; the defaults suit every kind.

    Attributes:
        kind: "auto" or one of `sources.KINDS`.
        generator: for fusion nets, the generator's checkpoint; for directions, the converted model they are for.
        with_discriminator: also convert the discriminator.
        dtype: "fp32", or "fp16" to write the fp16 variant in addition to the float32 files.
        truncation_psi: the model's default truncation; None for that of the source, or 0.7.
        tree: region tree of fusion nets, if their JSON is ambiguous.
        space, layers: of directions, if their files are ambiguous.
        reference, reference_seed, reference_class: outputs to compare with; see `checks.compare`.
        overwrite: replace a destination that is not empty.
        max_shard_size: as in diffusers: "5GB", or bytes.
        previews: sizes of the preview heads that are fitted for a MobileStyleGAN or a StyleGAN3; None for 128 and 256
            px, where a MobileStyleGAN is larger.
        progress: show a progress bar.
    """

    kind: str = "auto"
    generator: str | os.PathLike[str] | None = None
    with_discriminator: bool = False
    dtype: str = "fp32"
    truncation_psi: float | None = None
    tree: str | None = None
    space: str | None = None
    layers: list[int] | None = None
    reference: str | os.PathLike[str] | None = None
    reference_seed: int | None = None
    reference_class: int | None = None
    overwrite: bool = False
    max_shard_size: int | str = "5GB"
    previews: tuple[int, ...] | None = None
    progress: bool = True


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: Options | None = None,
    **changes: Any,
) -> Report:
    """Convert `source` into the folder `destination`.

    The folder loads as a pipeline, `StyleFusionPipeline.from_pretrained(destination)`, and part by part, e.g.
    `StyleGAN2Generator.from_pretrained(destination, subfolder="generator")`. A generator without fusion nets gets a
    region tree of one node. Directions are written to `destination/directions.safetensors`.

    Args:
        options: an `Options`.
        changes: single fields of `Options`, which override `options`.

    Raises:
        ConversionError: names the file and what is wrong. Nothing is written in that case.
    """
    options = Options(**{**vars(options or Options()), **changes})
    source, destination = _path(source, "source"), _path(destination, "destination")
    generator, reference = (
        None if value is None else _path(value, name)
        for name, value in (("generator", options.generator), ("reference", options.reference))
    )
    if options.kind not in ("auto", *KINDS) or options.dtype not in ("fp32", "fp16"):
        got = f"{options.kind!r}, {options.dtype!r}"
        raise ConversionError(f"kind is auto or one of {', '.join(KINDS)}, dtype is fp32 or fp16; got {got}")
    if options.truncation_psi is not None and not 0 <= options.truncation_psi <= 2:
        raise ConversionError(f"truncation_psi is between 0 and 2, got {options.truncation_psi}")
    size = options.max_shard_size
    sound = size > 0 if type(size) is int else type(size) is str and re.fullmatch(SIZE, size.upper()) is not None
    if not sound:
        raise ConversionError(f"max_shard_size is a size such as 5GB or 200MB, or bytes; got {short(size)}")
    given = [path for path in (source, generator, reference) if path is not None]
    for path in given:
        if not path.exists():
            raise ConversionError(f"{path}: there is no such file")
        check_ordinary(path)
    check_destination(destination, options.overwrite, given)  # fail before the long work, not after it
    with tqdm(total=7, unit="step", disable=not options.progress, leave=False) as bar:
        job = _Job(source, destination, options, generator, reference, Report(options.kind), bar)
        if options.kind == "mobilestylegan" or (options.kind == "auto" and ir_files.looks_like_ir(source)):
            job.openvino()
        elif source.suffix.lower() == ".json" or options.kind == "stylefusion":
            job.fusion_nets()
        elif source.is_dir() or options.kind == "directions":
            job.directions()
        else:
            job.checkpoint()
        bar.update(bar.total - bar.n)
    return job.report


def _path(value: Any, name: str) -> Path:
    """Return a path given as text or as a path; ConversionError for anything else."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ConversionError(f"{name} is the path of a file or folder, got {short(value)}")
    return Path(text)


@dataclass
class _Job:
    """One conversion: its source, destination, options, the paths among these, and report."""

    source: Path
    destination: Path
    options: Options
    generator_path: Path | None
    reference: Path | None
    report: Report
    bar: Any
    companions: Companions | None = None

    def step(self, what: str) -> None:
        self.bar.set_description(what)
        self.bar.update()

    # --- One method per family of sources ---------------------------------------------------------

    def checkpoint(self) -> None:
        """Convert a checkpoint with a generator, or with directions if it turns out to have these."""
        self.step("reading")
        content, buffer = load_mapped(self.source)
        if self.options.kind == "auto":
            direction_files.refuse_codes(content, self.source)
            if direction_files.looks_like_directions(content):
                del content
                self.directions()
                return
        source = read_source(content, str(self.source), self.options.kind)
        del content
        self.report.kind = source.kind
        with self._folder([self.source]) as work:
            self._describe_files({"source": self.source})
            generator = self._generator(source, work)
            release(buffer)
            self._discriminator(source, work)
            del source
            release(buffer)
            self._no_fusion(generator, work)
            self._finish(work)

    def openvino(self) -> None:
        """Convert the two networks of a MobileStyleGAN in OpenVINO's format."""
        self.report.kind = "mobilestylegan"
        self.step("reading")
        if self.options.with_discriminator:
            raise ConversionError(f"{self.source}: has no discriminator; convert without --with-discriminator")
        model = ir_files.read_model(self.source)
        psi = PSI if self.options.truncation_psi is None else self.options.truncation_psi
        converted, styles = mobile_graph.read_networks(model.mapping, model.synthesis, psi)
        with self._folder([self.source]) as work:
            self._describe_files({} if self.source.is_dir() else {"source": self.source})
            for file in model.files:
                self.report.sources |= file.facts()
            self.step("generator")
            self.report.unused += converted.unused
            self.report.notes += model.notes
            sizes = [len(style.bias) for style in styles]
            self._mean(MobileStyleGANGenerator, converted)
            self.step("previews")
            previews = fit_previews(converted, f"{self.source}: generator", self.options.previews)
            generator = self._write_generator(MobileStyleGANGenerator, converted, sizes[:-1], sizes[-1:], work)
            self.report.parts["generator"]["lines"] += describe_previews(previews)
            self._regions(generator, work)
            self._finish(work, lambda g: mobile_graph.compare_with_graphs(g, model.mapping, model.synthesis, styles))

    def fusion_nets(self) -> None:
        """Convert the authors' JSON of fusion nets together with a generator."""
        self.report.kind = "stylefusion"
        self._no_previews()
        self.step("reading")
        files = hierarchy.read_json(self.source)
        path = self.generator_path or files.generator
        if path is None:
            raise ConversionError(
                f"{self.source}: the fusion nets need their generator: give its checkpoint as --generator FILE, or"
                ' name it in the JSON as "generator"'
            )
        content, buffer = load_mapped(path)
        source = read_source(content, str(path))
        del content
        with self._folder([self.source, path, *files.nets.values()]) as work:
            named = {f"net {node}": file for node, file in files.nets.items()}
            self._describe_files({"source": self.source, "generator file": path, **named})
            converted = self._converted(source)
            resolution = converted.config["resolution"]
            domain, tree = hierarchy.choose_tree(list(files.nets), resolution, self.source, self.options.tree)
            if self.options.truncation_psi is None and domain in hierarchy.DOMAINS:
                converted.config["truncation_psi"] = hierarchy.DOMAINS[domain][1]
            generator = self._generator(source, work, converted)
            del converted
            release(buffer)
            self._discriminator(source, work)
            del source
            release(buffer)
            missing = [node for node in tree.inner if node not in tree.fused]
            if missing:
                self.report.notes.append(f"not fused, as there are no nets for them: {', '.join(missing)}")
            self._save("fusion", FusionHierarchy, hierarchy.convert_hierarchy(files.nets, tree, generator), work)
            self._finish(work)

    def directions(self) -> None:
        """Convert files of directions into one safetensors file."""
        self.report.kind = "directions"
        self._no_previews()
        if self.reference is not None:
            raise ConversionError(f"{self.reference}: directions have nothing to compare with a reference")
        sizes = directions.generator_sizes(self.generator_path)
        how = (self.options.space, self.options.layers, sizes, self.options.kind == "directions")
        found = directions.read_directions(self.source, *how)
        files = directions.list_files(self.source)
        self._describe_files({"source" if len(files) == 1 else file.name: file for file in files})
        self.report.unused, self.report.notes = found.unused, found.notes
        spaces = sorted({d.space for d in found.found.values()})
        listed = ", ".join(list(found.found)[:12]) + (", ..." if len(found.found) > 12 else "")
        self.report.parts["directions"] = {"lines": [f"{len(found.found)} in {', '.join(spaces)}: {listed}"]}
        with self._folder([self.source]) as work:
            save_directions(work / "directions.safetensors", found.found.values())
            self._finish(work)

    # --- Steps ------------------------------------------------------------------------------------

    def _no_previews(self) -> None:
        """ConversionError if previews are asked for that this kind of source does not have."""
        if self.options.previews:
            raise ConversionError(
                f"{self.source}: --previews is for a MobileStyleGAN or a StyleGAN3; a StyleGAN2 makes pictures of any"
                " of its sizes without a preview head"
            )

    def _folder(self, sources: list[Path]) -> Any:
        given = [path for path in (self.generator_path, self.reference) if path is not None]
        return replace_folder(self.destination, self.options.overwrite, [*sources, *given])

    def _describe_files(self, files: dict[str, Path]) -> None:
        self.step("hashing")
        for name, path in files.items():
            self.report.sources[printable(name)] = {
                "name": printable(path.name),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }

    def _converted(self, source: Source) -> Converted:
        own = self.options.truncation_psi
        converted = source.generator(PSI if own is None else own)
        if own is not None:
            converted.config["truncation_psi"] = own
        return converted

    def _generator(self, source: Source, work: Path, converted: Converted | None = None) -> dict[str, list[int]]:
        """Write the generator; return its style sizes, which fusion nets need."""
        self.step("generator")
        converted = converted or self._converted(source)
        self.report.unused += [*converted.unused, *source.unused]
        self.base_size = converted.config.get("base_size")
        channels = list(converted.config["channels"])
        if converted.architecture == "stylegan3":
            self._mean(StyleGAN3Generator, converted)
            asked = self.options.previews or ()
            previews = fit_previews(converted, f"{self.source}: generator", asked, StyleGAN3Generator)
            sizes = self._write_generator(StyleGAN3Generator, converted, [4, *channels[:-1]], channels[-1:], work)
            self.report.parts["generator"]["lines"] += describe_previews(previews)
        else:
            self._no_previews()
            conv = [converted.state[f"synthesis.convs.{i}.weight"].shape[1] for i in range(2 * len(channels) - 1)]
            sizes = self._write_generator(StyleGAN2Generator, converted, conv, channels, work)
        self.report.notes += [*source.notes, *converted.notes]
        return sizes

    def _write_generator(
        self, cls: type[StyleGenerator], converted: Converted, conv: list[int], rgb: list[int], work: Path
    ) -> dict[str, list[int]]:
        """Write a generator with style vectors of these widths; return the widths, which fusion nets need."""
        self._mean(cls, converted)
        self._save("generator", cls, converted, work)
        config = converted.config
        self.report.generator = cls.__name__
        s, rows = sum(conv) + sum(rgb), 2 * (config["resolution"] // config.get("base_size", (4, 4))[0]).bit_length()
        if converted.architecture == "stylegan3":
            rows = len(conv) + len(rgb)
        self.report.parts["generator"]["lines"] += [
            f"spaces z ({config['z_dim']}), w ({config['w_dim']}), w+ ({rows} x {config['w_dim']}), s ({s})",
            f"noise inputs {'on' if config.get('use_noise') else 'off'},"
            + (f" conv_clamp {config['conv_clamp']}," if "conv_clamp" in config else "")
            + f" truncation {config['truncation_psi']:g}, {config['label_dim'] or 'no'} classes",
        ]
        return {"conv_sizes": conv, "rgb_sizes": rgb}

    def _mean(self, cls: type[StyleGenerator], converted: Converted) -> None:
        """Estimate the mean of w where the source stores none."""
        if "w_avg" not in converted.state:
            converted.state["w_avg"] = estimate_mean(cls, converted, str(self.source), MEAN_SAMPLES)
            self.report.notes.append(
                f"the source stores no mean of w: it was estimated from {MEAN_SAMPLES} samples of seed 0"
            )

    def _no_fusion(self, sizes: dict[str, list[int]], work: Path) -> None:
        """Write a region tree of one node, for a generator without fusion nets."""
        shape = {"padded_width": max(*sizes["conv_sizes"], *sizes["rgb_sizes"])}
        shape["num_indicators"] = max(len(sizes["conv_sizes"]), len(sizes["rgb_sizes"])) + 1
        tree = RegionTree(TREE_ROOT, {})
        self._save("fusion", FusionHierarchy, Converted({"tree": tree.to_dict(), **sizes, **shape}, {}), work)

    def _regions(self, sizes: dict[str, list[int]], work: Path) -> None:
        """Add the nets that this package has for exactly this generator, or else a region tree of one node."""
        self.companions = find_companions(self.report.sources)
        if self.companions is None:
            self._no_fusion(sizes, work)
            return
        self.companions.copy_to(work)
        for part in self.companions.parts:
            config = read_json(work / part / "config.json")
            what = f"tree {RegionTree.from_dict(config['tree'])}" if part == "fusion" else "of this package"
            self.report.parts[part] = {"config": config, "lines": [what]}
        self.report.notes += self.companions.notes

    def _discriminator(self, source: Source, work: Path) -> None:
        self.step("discriminator")
        if not self.options.with_discriminator:
            self.report.unused += source.discriminator_tensors
            if source.discriminator is not None:
                self.report.notes.append("there is also a discriminator: --with-discriminator converts it")
        elif source.discriminator is None:
            raise ConversionError(f"{self.source}: has no discriminator; convert without --with-discriminator")
        else:
            converted = source.discriminator()
            self.report.unused += converted.unused
            if self.base_size is not None:  # only the generator's constant says height and width
                doublings = len(converted.config["channels"]) - 1
                converted.config |= {"resolution": self.base_size[0] * 2**doublings, "base_size": self.base_size}
            self._save("discriminator", StyleGAN2Discriminator, converted, work)

    def _save(self, part: str, cls: Any, converted: Converted, work: Path) -> None:
        half, what = self.options.dtype == "fp16", f"{self.source}: {part}"
        self.report.notes += save_model(cls, converted, work / part, what, half, self.options.max_shard_size)
        config, lines = converted.config, []
        if "channels" in config:
            size = describe_size(size_at(config["resolution"], config.get("base_size", (1, 1))))
            lines.append(f"{size}, channels {'-'.join(map(str, config['channels']))}")
        else:
            lines.append(f"tree {RegionTree.from_dict(config['tree'])}")
        count = sum(tensor.numel() for tensor in converted.state.values())
        filled = f"{count:,} numbers in {len(converted.state)} tensors, every parameter filled"
        lines.append(filled if converted.state else "no nets: the region is the whole picture")
        self.report.parts[part] = {"config": config, "lines": lines}

    def _finish(self, work: Path, compare: Callable[[Any], dict[str, float]] | None = None) -> None:
        """Check the result, compare it with the reference, and write the pipeline index and the model card.

        Args:
            compare: returns a converted generator's differences from its source, or raises.
        """
        self.step("checking")
        if self.report.kind != "directions":
            generator = StyleGenerator.from_pretrained(work / "generator")
            self.report.check = dict(checks.sample_statistics(generator))
            if compare is not None and not checks.is_too_large(generator):
                differences = compare(generator)
                self.report.check |= {f"{name} differs by": f"{error:.1e}" for name, error in differences.items()}
            if self.report.kind == "stylefusion":
                self.report.check |= checks.check_fusion(generator, work)
            kind = type(generator)
            del generator
            index = {
                "_class_name": "StyleFusionPipeline",
                "_diffusers_version": diffusers_version,
                "encoder": [None, None],
                "fusion": [FusionHierarchy.__module__, FusionHierarchy.__name__],
                "generator": [kind.__module__, kind.__name__],
                "segmenter": [None, None],
            }
            index |= self.companions.index() if self.companions else {}
            write_json(work / "model_index.json", index, indent=2)
        if self.reference is not None:
            how = (self.options.reference_seed, self.options.reference_class)
            lines = checks.compare(work, self.reference, *how)
            self.report.comparison = [(line.what, line.error, line.tolerance) for line in lines]
        files = sorted(path for path in work.rglob("*") if path.is_file())
        self.report.files = {path.relative_to(work).as_posix(): path.stat().st_size for path in files}
        weights = [path for path in files if path.suffix == ".safetensors"]
        self.report.weights = {path.relative_to(work).as_posix(): sha256_of(path) for path in weights}
        write_text(work / "README.md", model_card(self.report, self.destination.absolute().name))
        self.report.save(work)
