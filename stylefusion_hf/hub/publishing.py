"""Uploading to the Hub in one commit: all of it or nothing, and nothing lost that somebody changed there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from stylefusion_hf.core.hub_files import explain_errors
from stylefusion_hf.hub import model_card
from stylefusion_hf.hub.publication import CARD, WEIGHT_FILE, Publication, collect, prepare

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
    """Uploads a pipeline's folder: see `prepare` for what of it, and for the first arguments.

    The repository is made where there is none. Weight files that it has and the folder has not are deleted, so that
    nobody loads a mixture of two models. A README.md that was changed on the Hub is kept, and only lacking metadata
    are added; one that is as it was published is renewed.

    Args:
        overwrite_card: put the folder's README.md, or a generated one, in the place of one that was changed.
        keep_variants: keep weights of variants that the folder has none of.
        options: of `upload`.

    Returns:
        The commit's address.

    Raises:
        ValueError, OSError: one line that says what is wrong; nothing is published then.
    """
    publication = prepare(folder, repo_id, pipe=pipe, license=license, base_model=base_model, tags=tags, report=report)
    return upload(publication, repo_id, overwrite_card=overwrite_card, keep_variants=keep_variants, **options)


def publish_models(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Uploads models that make no pipeline, such as a generator alone: a component's folder, or several.

    Args:
        folder: with weights and configs, and a README.md that is uploaded where the repository has none.
        options: of `upload`.

    Returns:
        The commit's address.

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
        gaps=model_card.metadata(None, picture=False),
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
    """Uploads it in one commit, on top of what the repository has now; the commit's address.

    Args:
        repo_id: `user/name`, or `name` for one of the token's owner.
        revision: a branch, which is made where there is none.
        private: of a new repository.
        token: the stored login, or HF_TOKEN, if None.
        commit_message: its title.
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
        there = set(api.list_repo_files(repo_id, revision=parent))
        published = None
        if CARD in there:
            published = Path(api.hf_hub_download(repo_id, CARD, revision=parent)).read_text(encoding="utf-8")
        files = dict(publication.files)
        if publication.body or publication.card:
            files[CARD] = publication.card_beside(published, overwrite_card).encode()
            if files[CARD] != publication.own_card.encode():
                logger.warning("README.md of %s was changed there and is kept: overwrite_card replaces it", repo_id)
            if "license" not in model_card.metadata_of(files[CARD].decode()):  # type: ignore[union-attr]
                logger.warning("the card of %s names no licence, so nobody may use it: give license=", repo_id)
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        stale = stale_weights(there, files, publication.components, keep_variants)
        operations += [CommitOperationDelete(path) for path in stale]
        message = commit_message or "Upload with stylefusion-hf"
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr, parent_commit=parent
        )
    return str(commit.pr_url or commit.commit_url)


def stale_weights(
    there: Iterable[str], files: Mapping[str, Any], components: Iterable[str], keep_variants: bool
) -> list[str]:
    """Weight files of the components that the repository has and the upload has not, such as shards of other sizes."""

    def variants(component: str, paths: Iterable[str]) -> dict[str, str]:
        """The weight files among the paths -> the variant of each."""
        prefix = f"{component}/" if component else ""
        names = {path: path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
        matches = {path: WEIGHT_FILE.fullmatch(name) for path, name in names.items()}
        return {path: match["of"] or match["index"] or "" for path, match in matches.items() if match}

    stale = []
    for component in components:
        new = variants(component, files)
        for path, variant in variants(component, there).items():
            if path not in new and (not keep_variants or variant in new.values()):
                stale.append(path)
    return sorted(stale)
