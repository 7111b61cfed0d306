"""A native checkpoint as a folder for the Hugging Face hub (weights, config.json, card), and its upload."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vswin_cli.checkpoints.files import Checkpoint, atomic_file, load_checkpoint
from vswin_cli.checkpoints.published import PUBLISHED
from vswin_cli.errors import OutputError, UsageError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

#: Licence names of our table -> identifiers of the hub.
_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "Apache-2.0 (code), MIT (files)": "mit",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
}


#: A user's or organisation's name, and that of a repository (the hub's rules).
_REPO = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*\w/\w[\w.-]*\w", re.ASCII)


def check_repo(repo: str) -> None:
    """Raise UsageError where ``repo`` is no user/name, before anything is computed."""
    if len(repo) > 96 or not _REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is no repository of the hub", "--push USER/NAME")


def check_folder(folder: Path, force: bool) -> None:
    """Raise OutputError where ``folder`` holds something already, before anything is computed."""
    if folder.is_dir():
        there = sorted(p.name for p in folder.iterdir())
        if not force and there:
            raise OutputError(f"{folder} is not empty ({', '.join(there[:3])})", "name another folder")
    elif folder.exists():
        raise OutputError(f"{folder} is a file", "name a folder")


def write_folder(checkpoint: Path, folder: Path, *, title: str | None = None) -> None:
    """Fill ``folder`` from a native checkpoint: model.safetensors, config.json, README.md; each atomically.

    Raises OutputError, and CheckpointError for what is no checkpoint.
    """
    found = load_checkpoint(checkpoint)
    if found.dialect != "native":
        raise UsageError(
            f"{checkpoint} is in the dialect {found.dialect}; a hub folder holds a native file",
            f"vswin convert {checkpoint} model.safetensors --to native",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from error
    with atomic_file(folder / WEIGHTS) as temporary:
        shutil.copyfile(checkpoint, temporary)
    with atomic_file(folder / CONFIG) as temporary:
        text = json.dumps(config_of(found), indent=2, sort_keys=True, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(card_of(found, title or checkpoint.stem), encoding="utf-8")


def config_of(found: Checkpoint) -> dict[str, Any]:
    """What config.json says; the weights file says it all itself, too."""
    labels = found.labels or ()
    return {
        "model_type": "vswin",
        "model": found.config.to_json(),
        "protocol": None if found.protocol is None else found.protocol.to_json(),
        "source": dict(found.source),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def licence_of(source: Mapping[str, Any]) -> str | None:
    """The licence of the weights that a file was made from, if our table knows the file's name."""
    return next((p.licence for p in PUBLISHED.values() if p.file and p.file == source.get("name")), None)


def card_of(found: Checkpoint, title: str) -> str:
    """The model card: metadata for the hub, then what it is, where it comes from, how to use it."""
    config, source = found.config, found.source
    kind = "image-classification" if config.is_2d else "video-classification"
    licence = licence_of(source)
    head = ["---", "library_name: vswin", f"pipeline_tag: {kind}"]
    if licence in _LICENCES:
        head.append(f"license: {_LICENCES[licence]}")
    head += ["tags:", "- swin", "- video-swin", "---", ""]
    what = "Swin Transformer" if config.is_2d else "Video Swin Transformer"
    rows = [
        ("model", what),
        ("width, depths, heads", f"{config.embed_dim}, {_list(config.depths)}, {_list(config.num_heads)}"),
        ("patch, window", f"{_by(config.patch)}, {_by(config.window)}"),
        ("classes", f"{config.num_classes}" + _examples(found.labels)),
    ]
    if found.protocol is not None:
        rows.append(("protocol", f"{found.protocol.name}: {found.protocol.describe()}"))
    if source.get("name"):
        rows.append(("made from", f"{source['name']} ({source.get('dialect', 'unknown dialect')})"))
    if source.get("sha256"):
        rows.append(("its sha256", str(source["sha256"])))
    before = source.get("from")  # a converted file names what it was converted from
    trained = source.get("finetuned") or (before.get("finetuned") if isinstance(before, Mapping) else None)
    if isinstance(trained, Mapping):
        rows.append(
            (
                "finetuned",
                f"recipe {trained.get('recipe')}, Top-1 {trained.get('val_top1')} % of "
                f"{trained.get('val_videos')} validation videos ({trained.get('val_views')} views)",
            )
        )
    if licence is not None:
        rows.append(("licence of the source", licence))
    lines = [f"# {_plain(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(value)} |" for name, value in rows]
    use = "clip.mp4 --weights hf:USER/NAME"
    lines += ["", "```sh", "pip install vswin-cli", f"vswin predict {use}", "```", ""]
    if config.is_2d:
        lines[-4:] = ["pip install vswin-cli", "vswin inflate hf:USER/NAME video.safetensors", "```", ""]
    return "\n".join([*head, *lines])


def push(folder: Path, repo: str) -> str:
    """Upload a folder that write_folder filled, with the hub's own library and token; its address.

    The repository is made if it is not there. Raises OutputError.
    """
    check_repo(repo)
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    card = folder / CARD
    text = card.read_text(encoding="utf-8").replace("USER/NAME", repo)
    with atomic_file(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message="Upload with vswin",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx2.HTTPError, OSError, ValueError) as error:
        # ValueError: an answer that is no JSON.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise OutputError(
            f"{repo} cannot be uploaded ({reason})",
            f"the folder is ready in {folder}; log in with hf auth login, then: hf upload {repo} {folder} .",
        ) from error
    return f"{api.endpoint}/{repo}"


def _examples(labels: Sequence[str] | None) -> str:
    return "" if not labels else ": " + ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")


def _list(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))


def _by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _plain(text: str) -> str:
    """Text of a stranger's file within a table of Markdown: one line, no markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in flat)
