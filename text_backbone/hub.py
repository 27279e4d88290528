"""Where a model's files are: a folder here, or a Hugging Face hub id, fetched when there is a network."""

from __future__ import annotations

from pathlib import Path

_SECONDS = 3.0
_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.tiktoken")


def find_folder(path_or_hub_id: str | Path) -> Path:
    """The folder itself, or the local snapshot of a hub id.

    ValueError when it is neither: at once for what looks like a path, within seconds when the hub can not be reached.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if folder.exists():
        raise ValueError(f"{name} is a file; pass the folder it lies in")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(f"no folder {name}; pass a folder with a model's files, or a hub id such as 'owner/name'")
    return _snapshot(name)


def _snapshot(hub_id: str) -> Path:
    # Imported here: it takes a while, and local folders do not need it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    why: Exception | None = None
    revision = None
    try:
        revision = HfApi().repo_info(hub_id, timeout=_SECONDS).sha
    except HFValidationError as error:
        raise ValueError(f"{hub_id!r} is neither a folder here nor a hub id: {error}") from error
    except Exception as error:
        # What a missing network raises depends on the HTTP library of the day; whatever it is becomes the reason below.
        why = error
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(_PATTERNS),
                etag_timeout=_SECONDS,
                local_files_only=why is not None,
            )
        )
    except LocalEntryNotFoundError as error:
        reason = str(why or error).strip().splitlines()[0]
        raise ValueError(
            f"{hub_id!r} is no folder here, and the hub did not give it ({type(why or error).__name__}: {reason}); "
            "pass the path of a folder with the model's files"
        ) from why
