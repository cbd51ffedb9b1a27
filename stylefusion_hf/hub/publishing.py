"""Uploads to the Hub in one commit: complete or not at all, and without overwriting a card that was edited there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from stylefusion_hf.core.hub_errors import explain_errors
from stylefusion_hf.hub import model_card
from stylefusion_hf.hub.collecting import CARD, WEIGHT_FILE, collect
from stylefusion_hf.hub.publication import Publication, prepare

logger = logging.getLogger(__name__)


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    pipe: Any = None,
    license: str | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = (),
    report: str | Path | None = None,
    overwrite_card: bool = False,
    keep_variants: bool = False,
    **options: Any,
) -> str:
    """Upload a pipeline's folder; see `prepare` for the files that are uploaded, and for the first arguments.

    The repository is created if it does not exist. Weight files that are in the repository but not in the folder are
    deleted, so that no mixture of two models can be loaded. A README.md that was changed on the Hub is kept, and only
    missing metadata are added; an unchanged one is replaced.

    Args:
        overwrite_card: replace a README.md that was changed on the Hub by the folder's or a generated one.
        keep_variants: keep weights of variants that are not in the folder.
        options: arguments of `upload`.

    Returns:
        The URL of the commit.

    Raises:
        ValueError, OSError: one line that says what is wrong; nothing is published then.
    """
    publication = prepare(folder, repo_id, pipe=pipe, license=license, base_model=base_model, tags=tags, report=report)
    return upload(publication, repo_id, overwrite_card=overwrite_card, keep_variants=keep_variants, **options)


def publish_models(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Upload models that are not a complete pipeline, such as a generator: a component's folder, or several.

    Args:
        folder: contains weights, configs and optionally a README.md, which is uploaded if the repository has none.
        options: arguments of `upload`.

    Returns:
        The URL of the commit.

    Raises:
        ValueError, OSError: one line that says what is wrong; nothing is published then.
    """
    found = collect(Path(folder))
    names = {path.rpartition("/")[::2] for path in found.files}
    components = {parent for parent, name in names if WEIGHT_FILE.fullmatch(name)}
    if not components:
        raise ValueError(f"{folder} has no safetensors weights to publish")
    publication = Publication(
        found.files,
        found.left_out,
        found.card,
        gaps=model_card.default_metadata(None, picture=False),
        body=f"# {repo_id}\n",
        components=tuple(components),
        copies=found.copies,
    )
    return upload(publication, repo_id, **options)


def upload(
    publication: Publication,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
    keep_variants: bool = False,
) -> str:
    """Upload a publication in one commit on top of the repository's present state; returns the URL of the commit.

    Args:
        publication: what to upload.
        repo_id: `user/name`, or `name` for a repository of the token's owner.
        revision: a branch; created if it does not exist.
        private: whether a new repository is private.
        token: access token; None for the stored login or HF_TOKEN.
        commit_message: title of the commit.
        create_pr: open a pull request instead of committing to the branch.
        overwrite_card, keep_variants: as in `publish`.

    Raises:
        OSError: one line that names the repository, what happened and what to do.
    """
    api = HfApi(token=token)
    with explain_errors(f"cannot publish to {repo_id!r}", revision):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        parent = api.repo_info(repo_id, revision=revision).sha
        existing = set(api.list_repo_files(repo_id, revision=parent))
        published = None
        if CARD in existing:
            published = Path(api.hf_hub_download(repo_id, CARD, revision=parent)).read_text(encoding="utf-8")
        files = dict(publication.files)
        if publication.body or publication.card:
            files[CARD] = publication.merged_card(published, overwrite_card).encode()
            if files[CARD] != publication.own_card.encode():
                logger.warning("README.md of %s was changed there and is kept: overwrite_card replaces it", repo_id)
            if "license" not in model_card.read_metadata(files[CARD].decode()):  # type: ignore[union-attr]
                logger.warning(
                    "the card of %s names no license, so others may not use the model: give license=", repo_id
                )
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        stale = stale_weights(existing, files, publication.components, keep_variants)
        operations += [CommitOperationDelete(path) for path in stale]
        message = commit_message or "Upload with stylefusion-hf"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr, parent_commit=parent
        )
    return str(commit.pr_url or commit.commit_url)


def stale_weights(
    existing: Iterable[str], files: Mapping[str, Any], components: Iterable[str], keep_variants: bool
) -> list[str]:
    """Return the weight files of the components that exist in the repository but not in the upload."""

    def variants(component: str, paths: Iterable[str]) -> dict[str, str]:
        """Return {weight file: its variant} for the paths in a component."""
        prefix = f"{component}/" if component else ""
        names = {path: path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
        matches = {path: WEIGHT_FILE.fullmatch(name) for path, name in names.items()}
        return {path: match["of"] or match["index"] or "" for path, match in matches.items() if match}

    stale = []
    for component in components:
        new = variants(component, files)
        for path, variant in variants(component, existing).items():
            if path not in new and (not keep_variants or variant in new.values()):
                stale.append(path)
    return sorted(stale)
