"""What the source of a mount tells: the server of a network filesystem, the options worth reporting, the drives of Windows under WSL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadspan.facts.mounts import Mount

_LONGEST = 4096
_REPORTED = {  # never `username`, `credentials` and their like
    "nfs": ("vers", "rsize", "nconnect", "proto"),
    "nfs4": ("vers", "rsize", "nconnect", "proto"),
    "cifs": ("vers", "rsize", "cache", "multichannel"),
    "smb3": ("vers", "rsize", "cache", "multichannel"),
    "overlay": ("lowerdir", "upperdir"),
    "btrfs": ("subvol", "compress", "compress-force"),
    "9p": ("trans", "msize", "cache", "aname"),
    "fuse": ("max_read",),
    "tmpfs": ("size", "huge"),
    "ext4": ("dax",),
    "xfs": ("dax",),
}
# User and password before the host of a URL or a share: to the last @ before the path, and further where the password has a slash.
_USER = re.compile(r"""((?:^|:)//|^\\\\)(?:[^/\\?#]*@|[^/\\@:?#\[]*:(?!\d+(?:[/?#]|$))[^@]*@)""")
_QUERY = re.compile(r"(://[^?]*)\?.*", re.DOTALL)  # it may hold a signature that opens the door
_REMOTE = re.compile(r"(:?[^,:/]+),.*=.*", re.DOTALL)  # rclone has all parameters of a remote there, keys included
_HOST = re.compile(r"\[?([^\[\]/\\:@\s]+|[0-9a-fA-F:.]+(?:%[\w.-]+)?)\]?")
_AUTHORITY = re.compile(r"\[[^\]/]+\]|[^:/?#]+")
_NAMED_HOST = re.compile(r"(?:[^@/]*@)?(\[[^\]/]+\]|[^:/\[\]@]+):")
_HOSTED = ("sshfs", "glusterfs", "nfs", "mfs", "moosefs")
_WINDOWS = "drvfs"


def source(mount: Mount) -> str | None:
    """What is mounted, as the kernel says; without user, password, keys and signature. None where it says nothing."""
    text = bare(mount.filesystem, mount.source)[:_LONGEST]
    return text if text not in ("", "none") else None


def bare(filesystem: str, source: str) -> str:
    """The *source* of a mount without what nobody should read there."""
    text = _QUERY.sub(r"\1", _USER.sub(r"\1", source))
    found = _REMOTE.fullmatch(text) if filesystem.partition(".")[0] == "fuse" else None
    return found[1] if found is not None else text


def subtype(mount: Mount) -> str | None:
    """What is behind FUSE, or `drvfs` where it is a drive of Windows that WSL shows as 9p or virtiofs."""
    family, _, name = mount.filesystem.partition(".")
    if family in ("fuse", "fuseblk"):
        return name or mount.option("subtype") or None
    if mount.filesystem in ("9p", "virtiofs", _WINDOWS):
        name = (mount.option("aname") or "").partition(";")[0]
        if _WINDOWS in (name, mount.filesystem) or mount.source.startswith(_WINDOWS):
            return _WINDOWS
    return None


def options(mount: Mount) -> tuple[tuple[str, str], ...]:
    """Options that explain speed; a flag has an empty value."""
    wanted = _REPORTED.get(mount.filesystem.partition(".")[0], ())
    return tuple((name, value[:_LONGEST]) for name in wanted if (value := mount.option(name)) is not None)


def server(mount: Mount) -> str | None:
    """Host or hosts that a filesystem comes from; None where the source names none."""
    text, kind = bare(mount.filesystem, mount.source), mount.filesystem
    if kind in ("nfs", "nfs4"):
        host, separator, _ = text.partition(":/")
        return _host(host) if separator else _host(mount.option("addr") or "")
    if kind in ("cifs", "smb3", "smbfs"):
        return _host(re.split(r"[/\\]", text[2:])[0]) if text[:2] in ("//", "\\\\") else None
    if kind in ("ceph", "lustre"):
        hosts, separator, _ = text.partition(":/")
        return _hosts(hosts if separator else (mount.option("mon_addr") or "").replace("/", ","))
    if kind == "9p" and mount.option("trans") in ("tcp", "rdma"):
        return _host(text)
    return _of_fuse(text, subtype(mount)) if kind == "fuse" or kind.startswith("fuse.") else None


def _of_fuse(text: str, name: str | None) -> str | None:
    if "://" in text:
        found = _AUTHORITY.match(text.partition("://")[2])
        return _host(found[0]) if found is not None else None
    found = _NAMED_HOST.match(text)
    # Others write the name of a bucket or of a configured remote there.
    if found and (name in _HOSTED or (name is None and "@" in text)):
        return _host(found[1])
    return None


def _host(text: str) -> str | None:
    return found[1][:_LONGEST] if (found := _HOST.fullmatch(text)) and text.isprintable() else None


def _hosts(text: str) -> str | None:
    """Several, with their ports or networks, as they are written."""
    return text[:_LONGEST] if text and text.isprintable() and not re.search(r"[\s/]", text) else None
