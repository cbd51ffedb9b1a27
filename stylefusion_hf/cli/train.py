"""Train a model. All flags are passed to the trainer, and `stylefusion train JOB --help` shows the trainer's own help.

    stylefusion train generator --avatars 40000 --output_dir runs/avatars

To use several processes or devices, start the same trainer as `accelerate launch -m stylefusion_hf.training.JOB`.
"""

from __future__ import annotations

import argparse
from importlib import import_module

# job -> what it trains; its module stylefusion_hf.training.<job> has a function main(argv)
JOBS = {
    "generator": "a StyleGAN2 and its discriminator, on avatars or on your pictures",
    "segmenter": "the network that finds the regions in a picture",
    "fusion": "the fusion nets of a region tree, for a trained generator",
    "encoder": "the image encoder of a trained generator, for real pictures",
    "judges": "the networks that `stylefusion evaluate` uses",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{job}: {what}" for job, what in JOBS.items())
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=listed)
    parser.add_argument("flags", metavar="...", nargs=argparse.REMAINDER, help="the trainer's flags")


def run(args: argparse.Namespace) -> None:
    # Unknown and malformed flags are reported before the trainer imports torch.
    flags = import_module(f"stylefusion_hf.training.{args.job}_flags").parse_args(args.flags)
    print(f"wrote {import_module(f'stylefusion_hf.training.{args.job}').train(flags)}")
