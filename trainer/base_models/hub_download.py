"""Download a model from the Hugging Face Hub into the hub's cache, with progress; a large file is resumed.

`limner download`, which the page's button starts too, is the only part of the program that asks the hub for anything.
The hub's own client begins a file again after an interruption, which is much for 7 GB, so large files are fetched here.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from trainer import storage
from trainer.base_models.hub import RemoteFile, select, split
from trainer.errors import UserError

SPARE = 2 * 2**30  # bytes that stay free on the disk
LARGE = 20 * 2**20  # bytes from which a file is resumed
ATTEMPTS = 5  # to go on after the connection broke, without a byte in between
REPORTED_EVERY = 0.5  # seconds
PIECE = 2**20  # bytes that are read at once
PARTIAL = ".partial"  # of a file that is being fetched
_SHA256 = re.compile("[0-9a-f]{64}")
# The hub's client uses another HTTP library from version to version.
FAILURES: tuple[type[Exception], ...] = (OSError, httpx.HTTPError, *HfHubHTTPError.__bases__)


Select = Callable[[Sequence[RemoteFile]], list[RemoteFile]]


def download(
    base: str, revision: str, report: Callable[[int, int], None], selections: Sequence[Select] = (select,)
) -> Path:
    """Download a model into the hub's cache, going on where an earlier attempt ended; returns its path there.

    Args:
        base: owner/name, or owner/name/file.safetensors.
        revision: branch, tag or commit; "" = the newest.
        report: called with the bytes that are here, and those of the whole download.
        selections: which files of a repository are needed, the last of them in its top folder; the first that finds
            any counts.

    Raises:
        UserError: there is no such model, it needs a license to be accepted, the hub cannot be reached, or the disk
            is too small.
    """
    disable_progress_bars()
    repository, file_name = split(base)
    try:
        files, commit = _look_up(base, revision, selections)
        missing = [file for file in files if not _is_cached(repository, file.path, commit)]
        total = sum(file.size for file in missing)
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        if storage.free_space(cache) < total + SPARE:
            raise UserError(
                "The disk is too full for {base}: it takes {size:.1f} GB.",
                "Free some space, then download it again.",
                base=base,
                size=total / 2**30,
            )
        blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
        with _Reporter(blobs, total, report):
            for file in files:
                if file.size >= LARGE:
                    _fetch(repository, file, commit, blobs)
                path = hf_hub_download(repository, file.path, revision=revision or None)
    except FAILURES as error:
        raise _explain(base, error) from error
    return Path(path) if file_name else Path(path).parent


def _explain(base: str, error: Exception) -> UserError:
    if isinstance(error, GatedRepoError):
        return UserError(
            "{base} can only be downloaded by those who accepted its license.",
            "Accept it at huggingface.co/{repository}, log in here with: hf auth login, and download it again.",
            base=base,
            repository=split(base)[0],
        )
    unknown = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
    if isinstance(error, unknown) and not isinstance(error, LocalEntryNotFoundError):
        return UserError(
            "The Hugging Face Hub has no model {base!r}.",
            "Check the name; if it is private, log in with: hf auth login.",
            base=base,
        )
    return UserError(
        "{base} could not be downloaded: the Hugging Face Hub did not answer.",
        "Check the connection and try again; the download continues where it ended.",
        base=base,
    )


def _look_up(base: str, revision: str, selections: Sequence[Select]) -> tuple[list[RemoteFile], str]:
    """Return the needed files of a model, and its commit.

    Raises:
        UserError: the repository is not such a model; it says what to enter instead.
    """
    repository, file = split(base)
    info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
    files = [RemoteFile(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or ()]
    if file:
        selected = [remote for remote in files if remote.path == file]
    else:
        selected = next(filter(None, (choose(files) for choose in selections)), [])
    if file and not selected:
        raise UserError(
            "The repository {repository} has no file {file!r}.", "Check the name.", repository=repository, file=file
        )
    if not any(remote.path.endswith((".safetensors", ".onnx")) for remote in selected):
        single = [remote.path for remote in files if "/" not in remote.path and remote.path.endswith(".safetensors")]
        if single:
            raise UserError(
                "{repository} is not in diffusers format.",
                "Choose one of its files: {names}.",
                repository=repository,
                names=", ".join(f"{repository}/{name}" for name in single[:5]),
            )
        raise UserError(
            "{repository} has no weights of a base model in safetensors format.",
            "Choose another one.",
            repository=repository,
        )
    return selected, info.sha or ""


def _fetch(repository: str, file: RemoteFile, commit: str, blobs: Path) -> None:
    """Fetch a file into the cache's folder of contents, from where an earlier attempt ended.

    Raises:
        UserError: what arrived is not what the hub has.
    """
    metadata = get_hf_file_metadata(hf_hub_url(repository, file.path, revision=commit or None))
    if metadata.etag is None or metadata.location is None:
        return
    blob, partial = blobs / metadata.etag, blobs / f"{metadata.etag}{PARTIAL}"
    blobs.mkdir(parents=True, exist_ok=True)
    with FileLock(blobs.parent / f"{metadata.etag}.lock"):
        attempts = 0
        while not blob.exists():
            before = partial.stat().st_size if partial.exists() else 0
            try:
                if before < file.size:
                    _append(metadata.location, partial)
                break
            except httpx.TransportError:
                attempts = attempts + 1 if partial.exists() and partial.stat().st_size == before else 0
                if attempts == ATTEMPTS:
                    raise
        if not blob.exists():
            _check(partial, file, metadata.etag)
            storage.finish(partial, blob)


def _append(url: str, partial: Path) -> None:
    """Append to a partial file what is missing of it."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = build_hf_headers()
    if urlsplit(url).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)  # a token is for the hub alone, not for where it keeps large files
    headers["Range"] = f"bytes={start}-"
    headers["Accept-Encoding"] = "identity"
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        response.raise_for_status()
        continues = response.status_code == httpx.codes.PARTIAL_CONTENT
        storage.append(partial, response.iter_bytes(PIECE), from_start=not continues)


def _check(partial: Path, file: RemoteFile, etag: str) -> None:
    """Compare a file with its size and, as the hub names large files by it, its SHA-256."""
    damaged = partial.stat().st_size != file.size
    if not damaged and _SHA256.fullmatch(etag):
        with partial.open("rb") as opened:
            damaged = hashlib.file_digest(opened, "sha256").hexdigest() != etag
    if damaged:
        partial.unlink()
        raise UserError("{name} arrived damaged.", "Download it again.", name=file.name)


def _is_cached(repository: str, path: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, path, revision=commit), str)


class _Reporter:
    """Report the bytes that arrive in a folder of the cache, from a thread, while the `with` lasts."""

    def __init__(self, folder: Path, total: int, report: Callable[[int, int], None]) -> None:
        self._folder, self._total, self._report = folder, total, report
        self._before = sum(size for name, size in self._sizes() if not name.endswith((".incomplete", PARTIAL)))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._tell()

    def _watch(self) -> None:
        self._tell()
        while not self._done.wait(REPORTED_EVERY):
            self._tell()

    def _tell(self) -> None:
        here = sum(size for _name, size in self._sizes()) - self._before
        self._report(min(max(here, 0), self._total), self._total)

    def _sizes(self) -> list[tuple[str, int]]:
        sizes = []
        for file in self._folder.glob("*"):
            try:
                sizes.append((file.name, file.stat().st_size))
            except OSError:  # renamed meanwhile
                continue
        return sizes
