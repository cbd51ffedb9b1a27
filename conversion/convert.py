"""`convert(source, destination)`: a third-party checkpoint -> a folder that `from_pretrained` loads.

A method for each family of sources. The stages are modules of their own: reading (`safe_pickle`), detecting
(`sources`), renaming (`layouts`, `nvidia`, `rosinality`), writing (`job`, `writing`), checking (`checks`) and
reporting (`report`).
"""

from __future__ import annotations

import os
from typing import Any

from stylefusion_hf.conversion import direction_files, directions, hierarchy, ir_files, mobile_graph
from stylefusion_hf.conversion.job import PSI, Job
from stylefusion_hf.conversion.options import Options, check_options
from stylefusion_hf.conversion.previews import describe_previews, fit_previews
from stylefusion_hf.conversion.report import Report
from stylefusion_hf.conversion.sources import read_source
from stylefusion_hf.conversion.writing import release
from stylefusion_hf.core.edits import save_directions
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import load_mapped
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator


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
    paths = check_options(source, destination, options)
    with tqdm(total=7, unit="step", disable=not options.progress, leave=False) as bar:
        job = _Conversion(paths, options, Report(options.kind), bar)
        if options.kind == "mobilestylegan" or (options.kind == "auto" and ir_files.looks_like_ir(paths.source)):
            job.openvino()
        elif paths.source.suffix.lower() == ".json" or options.kind == "stylefusion":
            job.fusion_nets()
        elif paths.source.is_dir() or options.kind == "directions":
            job.directions()
        else:
            job.checkpoint()
        bar.update(bar.total - bar.n)
    return job.report


class _Conversion(Job):
    """A method for each family of sources."""

    def checkpoint(self) -> None:
        """Convert a checkpoint with a generator, or with directions if it turns out to have these."""
        self.step("reading")
        content, buffer = load_mapped(self.paths.source)
        if self.options.kind == "auto":
            direction_files.refuse_codes(content, self.paths.source)
            if direction_files.looks_like_directions(content):
                del content
                self.directions()
                return
        source = read_source(content, str(self.paths.source), self.options.kind)
        self.refuse_options("generator", "tree", "space", "layers")
        del content
        self.report.kind = source.kind
        with self.new_folder([self.paths.source]) as work:
            self.describe_files({"source": self.paths.source})
            generator = self.add_generator(source, work)
            release(buffer)
            self.add_discriminator(source, work)
            del source
            release(buffer)
            self.add_single_region(generator, work)
            self.finish(work)

    def openvino(self) -> None:
        """Convert the two networks of a MobileStyleGAN in OpenVINO's format."""
        self.report.kind = "mobilestylegan"
        self.refuse_options("generator", "tree", "space", "layers")
        self.step("reading")
        if self.options.with_discriminator:
            raise ConversionError(f"{self.paths.source}: has no discriminator; convert without --with-discriminator")
        model = ir_files.read_model(self.paths.source)
        psi = PSI if self.options.truncation_psi is None else self.options.truncation_psi
        converted, styles = mobile_graph.read_networks(model.mapping, model.synthesis, psi)
        with self.new_folder([self.paths.source]) as work:
            self.describe_files({} if self.paths.source.is_dir() else {"source": self.paths.source})
            for file in model.files:
                self.report.sources |= file.facts()
            self.step("generator")
            self.report.unused += converted.unused
            self.report.notes += model.notes
            sizes = [len(style.bias) for style in styles]
            self.add_mean(MobileStyleGANGenerator, converted)
            self.step("previews")
            previews = fit_previews(converted, f"{self.paths.source}: generator", self.options.previews)
            generator = self.write_generator(MobileStyleGANGenerator, converted, sizes[:-1], sizes[-1:], work)
            self.report.parts["generator"]["lines"] += describe_previews(previews)
            self.add_regions(generator, work)
            self.finish(work, lambda g: mobile_graph.compare_with_graphs(g, model.mapping, model.synthesis, styles))

    def fusion_nets(self) -> None:
        """Convert the authors' JSON of fusion nets together with a generator."""
        self.report.kind = "stylefusion"
        self.refuse_options("previews", "space", "layers")
        self.step("reading")
        files = hierarchy.read_json(self.paths.source)
        path = self.paths.generator or files.generator
        if path is None:
            raise ConversionError(
                f"{self.paths.source}: the fusion nets need their generator: give its checkpoint as --generator FILE,"
                ' or name it in the JSON as "generator"'
            )
        content, buffer = load_mapped(path)
        source = read_source(content, str(path))
        del content
        with self.new_folder([self.paths.source, path, *files.nets.values()]) as work:
            named = {f"net {node}": file for node, file in files.nets.items()}
            self.describe_files({"source": self.paths.source, "generator file": path, **named})
            converted = self.read_generator(source)
            resolution = converted.config["resolution"]
            domain, tree = hierarchy.choose_tree(list(files.nets), resolution, self.paths.source, self.options.tree)
            if self.options.truncation_psi is None and domain in hierarchy.DOMAINS:
                converted.config["truncation_psi"] = hierarchy.DOMAINS[domain][1]
            generator = self.add_generator(source, work, converted)
            del converted
            release(buffer)
            self.add_discriminator(source, work)
            del source
            release(buffer)
            missing = [node for node in tree.inner if node not in tree.fused]
            if missing:
                self.report.notes.append(f"not fused, as there are no nets for them: {', '.join(missing)}")
            self.save("fusion", FusionHierarchy, hierarchy.convert_hierarchy(files.nets, tree, generator), work)
            self.finish(work)

    def directions(self) -> None:
        """Convert files of directions into one safetensors file."""
        self.report.kind = "directions"
        self.refuse_options("previews", "tree")
        if self.paths.reference is not None:
            raise ConversionError(f"{self.paths.reference}: directions have nothing to compare with a reference")
        sizes = directions.generator_sizes(self.paths.generator)
        how = (self.options.space, self.options.layers, sizes, self.options.kind == "directions")
        found = directions.read_directions(self.paths.source, *how)
        files = directions.list_files(self.paths.source)
        self.describe_files({"source" if len(files) == 1 else file.name: file for file in files})
        self.report.unused, self.report.notes = found.unused, found.notes
        spaces = sorted({d.space for d in found.found.values()})
        listed = ", ".join(list(found.found)[:12]) + (", ..." if len(found.found) > 12 else "")
        self.report.parts["directions"] = {"lines": [f"{len(found.found)} in {', '.join(spaces)}: {listed}"]}
        with self.new_folder([self.paths.source]) as work:
            save_directions(work / "directions.safetensors", found.found.values())
            self.finish(work)
