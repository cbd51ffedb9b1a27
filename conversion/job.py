"""One conversion: the steps that all families of sources share, from its options to the folder and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import __version__ as diffusers_version

from stylefusion_hf.conversion import checks
from stylefusion_hf.conversion.companions import Companions, find_companions
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.networks import Source
from stylefusion_hf.conversion.options import Options, Paths
from stylefusion_hf.conversion.previews import describe_previews, fit_previews
from stylefusion_hf.conversion.report import Report, model_card, printable
from stylefusion_hf.conversion.writing import estimate_mean, replace_folder, save_model
from stylefusion_hf.core.files import sha256_of, write_json, write_text
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.core.sizes import describe_size, size_at
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.models.stylegan3 import StyleGAN3Generator

PSI = 0.7  # default truncation if the source does not specify one
MEAN_SAMPLES = 4096  # to estimate the mean of w, as many as the StyleFusion authors draw
OPTION_OF = {
    "generator": "fusion nets and directions",
    "tree": "fusion nets",
    "space": "directions",
    "layers": "directions",
    "previews": "a MobileStyleGAN or a StyleGAN3 (a StyleGAN2 makes pictures of any of its sizes without a head)",
}
TREE_ROOT = "all"  # the only region of a generator without fusion nets


@dataclass
class Job:
    """One conversion: its paths, options, report and progress bar."""

    paths: Paths
    options: Options
    report: Report
    bar: Any
    companions: Companions | None = None

    def step(self, what: str) -> None:
        self.bar.set_description(what)
        self.bar.update()

    def refuse_options(self, *names: str) -> None:
        """ConversionError if options are given that this kind of source does not have."""
        for name in names:
            if getattr(self.options, name):
                raise ConversionError(f"{self.paths.source}: --{name} is for {OPTION_OF[name]}: leave it out")

    def new_folder(self, sources: list[Path]) -> Any:
        given = [path for path in (self.paths.generator, self.paths.reference) if path is not None]
        return replace_folder(self.paths.destination, self.options.overwrite, [*sources, *given])

    def describe_files(self, files: dict[str, Path]) -> None:
        self.step("hashing")
        for name, path in files.items():
            self.report.sources[printable(name)] = {
                "name": printable(path.name),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }

    def read_generator(self, source: Source) -> Converted:
        own = self.options.truncation_psi
        converted = source.generator(PSI if own is None else own)
        if own is not None:
            converted.config["truncation_psi"] = own
        return converted

    def add_generator(self, source: Source, work: Path, converted: Converted | None = None) -> dict[str, list[int]]:
        """Write the generator; return its style sizes, which fusion nets need."""
        self.step("generator")
        converted = converted or self.read_generator(source)
        self.report.unused += [*converted.unused, *source.unused]
        self.base_size = converted.config.get("base_size")
        channels = list(converted.config["channels"])
        if converted.architecture == "stylegan3":
            self.add_mean(StyleGAN3Generator, converted)
            asked = self.options.previews or ()
            previews = fit_previews(converted, f"{self.paths.source}: generator", asked, StyleGAN3Generator)
            sizes = self.write_generator(StyleGAN3Generator, converted, [4, *channels[:-1]], channels[-1:], work)
            self.report.parts["generator"]["lines"] += describe_previews(previews)
        else:
            self.refuse_options("previews")
            conv = [converted.state[f"synthesis.convs.{i}.weight"].shape[1] for i in range(2 * len(channels) - 1)]
            sizes = self.write_generator(StyleGAN2Generator, converted, conv, channels, work)
        self.report.notes += [*source.notes, *converted.notes]
        return sizes

    def write_generator(
        self, cls: type[StyleGenerator], converted: Converted, conv: list[int], rgb: list[int], work: Path
    ) -> dict[str, list[int]]:
        """Write a generator with style vectors of these widths; return the widths, which fusion nets need."""
        self.add_mean(cls, converted)
        self.save("generator", cls, converted, work)
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

    def add_mean(self, cls: type[StyleGenerator], converted: Converted) -> None:
        """Estimate the mean of w where the source stores none."""
        if "w_avg" not in converted.state:
            converted.state["w_avg"] = estimate_mean(cls, converted, str(self.paths.source), MEAN_SAMPLES)
            self.report.notes.append(
                f"the source stores no mean of w: it was estimated from {MEAN_SAMPLES} samples of seed 0"
            )

    def add_single_region(self, sizes: dict[str, list[int]], work: Path) -> None:
        """Write a region tree of one node, for a generator without fusion nets."""
        shape = {"padded_width": max(*sizes["conv_sizes"], *sizes["rgb_sizes"])}
        shape["num_indicators"] = max(len(sizes["conv_sizes"]), len(sizes["rgb_sizes"])) + 1
        tree = RegionTree(TREE_ROOT, {})
        self.save("fusion", FusionHierarchy, Converted({"tree": tree.to_dict(), **sizes, **shape}, {}), work)

    def add_regions(self, sizes: dict[str, list[int]], work: Path) -> None:
        """Add the nets that this package has for exactly this generator, or else a region tree of one node."""
        self.companions = find_companions(self.report.sources)
        if self.companions is None:
            self.add_single_region(sizes, work)
            return
        self.companions.copy_to(work)
        for part in self.companions.parts:
            config = read_json(work / part / "config.json")
            what = f"tree {RegionTree.from_dict(config['tree'])}" if part == "fusion" else "of this package"
            self.report.parts[part] = {"config": config, "lines": [what]}
        self.report.notes += self.companions.notes
        self.report.credits, self.report.limits = self.companions.credits, self.companions.limits

    def add_discriminator(self, source: Source, work: Path) -> None:
        self.step("discriminator")
        if not self.options.with_discriminator:
            self.report.unused += source.discriminator_tensors
            if source.discriminator is not None:
                self.report.notes.append("there is also a discriminator: --with-discriminator converts it")
        elif source.discriminator is None:
            raise ConversionError(f"{self.paths.source}: has no discriminator; convert without --with-discriminator")
        else:
            converted = source.discriminator()
            self.report.unused += converted.unused
            if self.base_size is not None:  # only the generator's constant says height and width
                doublings = len(converted.config["channels"]) - 1
                converted.config |= {"resolution": self.base_size[0] * 2**doublings, "base_size": self.base_size}
            self.save("discriminator", StyleGAN2Discriminator, converted, work)

    def save(self, part: str, cls: Any, converted: Converted, work: Path) -> None:
        half, what = self.options.dtype == "fp16", f"{self.paths.source}: {part}"
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

    def finish(self, work: Path, compare: Callable[[Any], dict[str, float]] | None = None) -> None:
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
        if self.paths.reference is not None:
            how = (self.options.reference_seed, self.options.reference_class)
            lines = checks.compare(work, self.paths.reference, *how)
            self.report.comparison = [(line.what, line.error, line.tolerance) for line in lines]
        files = sorted(path for path in work.rglob("*") if path.is_file())
        self.report.files = {path.relative_to(work).as_posix(): path.stat().st_size for path in files}
        weights = [path for path in files if path.suffix == ".safetensors"]
        self.report.weights = {path.relative_to(work).as_posix(): sha256_of(path) for path in weights}
        write_text(work / "README.md", model_card(self.report, self.paths.destination.absolute().name))
        self.report.save(work)
