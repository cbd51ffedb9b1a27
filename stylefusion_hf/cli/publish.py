"""Upload a model to the Hugging Face Hub, in one commit: all of it or nothing.

DIR is a pipeline's folder, as written by save_pretrained, `stylefusion convert` or a trainer. The pipeline is loaded
first, and a contact sheet is drawn for its card. The README.md in DIR is used as it is, except that missing metadata
are added; a README.md that was changed on the Hub is kept. Log in with `hf auth login`, or set HF_TOKEN. See
docs/guides/hub.md.

    stylefusion publish runs/fusion me/avatars --license apache-2.0 --dry-run
    stylefusion publish runs/fusion me/avatars --license apache-2.0 --report evaluation/report.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.cli.outputs import output_folder, report_written

MAX_LISTED = 100  # names of left-out files to print
LIST_ONLY = "-"  # value of --dry-run without a folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a pipeline's folder")
    parser.add_argument("repo", metavar="USER/REPO", help="the repository; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", "--branch", metavar="BRANCH", help="branch to commit to; created if it does not exist"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--license", metavar="ID", help="license for the card, such as apache-2.0")
    parser.add_argument("--base-model", metavar="ID", help="Hub id of the base model, for the card")
    parser.add_argument("--tag", action="append", default=[], help="tag for the card; repeatable")
    parser.add_argument(
        "--report", metavar="FILE", help="report.json of `stylefusion evaluate` for the card (default: DIR's)"
    )
    parser.add_argument(
        "--overwrite-card", action="store_true", help="also replace a README.md that was changed on the Hub"
    )
    parser.add_argument("--space", metavar="USER/SPACE", help="also upload a Space that shows the model")
    parser.add_argument(
        "--wheel", metavar="FILE", help="wheel of this package for the Space (default: built from the checkout)"
    )
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const=LIST_ONLY,
        metavar="FOLDER",
        help="upload nothing: list the files, or write them into this new folder",
    )


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.core.hub_files import NAME

    folder = Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f"{args.folder} is not a folder: name a pipeline's folder")
    if not NAME.fullmatch(args.repo):
        raise ValueError(f"{args.repo!r} is not the name of a repository: give user/name")
    if args.space and not NAME.fullmatch(args.space):
        raise ValueError(f"--space {args.space!r} is not the name of a Space: give user/space")
    if args.wheel and not args.space:
        raise ValueError("--wheel goes with a Space: give --space USER/SPACE too")
    target = Path(args.dry_run) if args.dry_run not in (None, LIST_ONLY) else None
    if target is not None and target.exists() and any(target.iterdir()):
        raise ValueError(f"--dry-run {target}: the folder is not empty; name a new one")

    from diffusers.utils import logging

    from stylefusion_hf.core.checks import shown
    from stylefusion_hf.hub.publication import prepare
    from stylefusion_hf.hub.publishing import upload

    logging.disable_progress_bar()  # components load quickly, and the upload has its own progress bar
    publication = prepare(
        folder,
        args.repo,
        license=args.license,
        base_model=args.base_model,
        tags=args.tag,
        report=args.report,
    )
    sizes = publication.sizes()
    total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"
    if args.dry_run is not None:
        for path, size in sizes.items():
            print(f"{size:>14,}  {shown(path)}")
        if left := publication.left_out:
            more = f" and {len(left) - MAX_LISTED} more" if len(left) > MAX_LISTED else ""
            print(f"left out: {', '.join(map(shown, left[:MAX_LISTED]))}{more}")
        print(f"would publish {total} to {args.repo}; a README.md that was changed there is kept")
        if args.space:
            print(f"would publish the Space {args.space}, with the package's wheel")
        if target is not None:
            publication.write(output_folder(str(target)))
            report_written(target, total)
        return
    address = upload(
        publication,
        args.repo,
        revision=args.revision,
        private=True if args.private else None,
        commit_message=args.message,
        create_pr=args.create_pr,
        overwrite_card=args.overwrite_card,
    )
    print(f"published {total}: {address}")
    if args.space:
        from stylefusion_hf.hub.space_publishing import publish_space

        private = True if args.private else None
        address = publish_space(args.space, model=args.repo, wheel=args.wheel, private=private)
        print(f"published the Space: {address}")
