"""
What a capture must not say, taken out of kernel files: serial numbers, UUIDs, host and server names, addresses.

A replaced name stays the same name all over one capture, and a UUID that starts with another's digits still does, so that
`CUDA_VISIBLE_DEVICES=GPU-8932` finds its GPU; between two captures nothing can be matched, for each has a key of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from typing import TYPE_CHECKING

from loadspan.facts import remote

if TYPE_CHECKING:
    from collections.abc import Collection

_UNREAD = re.compile(
    "address|boot_id|(?:board|chassis|product)_serial|cmdline|config|domainname|eui|environ|hostname|machine-id|nguid|product_uuid|rom"
    "|serial|serial_number|sn|unique_id|vpd|vpd_pg80|vpd_pg83|wwid|wwn"
)
"""Files whose content is left out whoever reads them."""

_IDENTIFIER = re.compile(
    r"(?:(?<=pod)|(?<![0-9A-Za-z]))[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}(?![0-9A-Za-z])|(?<=GPU-)[0-9a-f][0-9a-f-]*|(?<=MIG-)[0-9a-f][0-9a-f-]*"
    r"|(?<![0-9A-Za-z])[0-9a-f]{32,}(?![0-9A-Za-z])",
    re.IGNORECASE,
)
_VOLUME = re.compile(r"LVM-[0-9A-Za-z]{32,}")
_MULTIPATH = re.compile(r"mpath-\S+")
_SERIAL = re.compile(r"(?im)^[^\n:=]*serial[^\n:=]*[:=].*\n?")
_UNIQUE = re.compile(r"(?m)^(unique_id )(\d{1,20})$")
_BUILDER = re.compile(r"[\w.-]+@[\w.-]+")
_ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
_NAMED = ("dm/name", "loop/backing_file", "proc/self/cgroup", "proc/1/cgroup", "proc/self/mountinfo")
_OPTION = re.compile(
    "rw|ro|(?:nfs)?vers|[rw]size|nconnect|proto|hard|soft|noac|a?sync|lookupcache|actimeo|local_lock|max_read|subvol|subvolid|multichannel"
    "|compress(?:-force)?|size|mode|huge|mpol|nr_inodes|cache|access|trans|aname|msize|dax|discard|(?:rel|no)atime|subtype|metacopy"
    r"|(?:lower|upper)dir|lowerdir\+|datadir\+"
)
_URL = re.compile(r"(?P<scheme>[\w#+.-]+://)(?:[^/@]*@)?(?P<hosts>[^/:]+)(?P<rest>.*)", re.DOTALL)
_SERVED = re.compile(r"(?P<user>[^@/]*@)?(?P<hosts>[^/]+?)(?P<rest>:/.*)", re.DOTALL)
_CEPH = re.compile(r"[^@/]*@[^./]*(?P<rest>\..*)", re.DOTALL)
_SHARED = re.compile(r"//(?P<hosts>[^/]+)(?P<rest>.*)", re.DOTALL)
_LUSTRE = re.compile(r"(?P<hosts>[^/]+)(?P<rest>:/.*)", re.DOTALL)
_KERNEL = ("cgroup", "cgroup2")
_POINT, _FIELDS = 4, 6  # where a line of mountinfo has its mount point, and the fields that every line has


class Scrub:
    """Takes out of the files of one capture what they must not say."""

    def __init__(self, host: str = "", paths: Collection[str] = (), key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(16)
        self._paths = [path.rstrip("/") + "/" for path in paths]
        # A short or common host name would take words out of paths that are no host names.
        names = {name for name in (host, host.partition(".")[0]) if len(name) > 2 and name != "localhost"}  # noqa: PLR2004 - as said
        any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._host = re.compile(rf"(?<![0-9A-Za-z])(?:{any_name})(?![0-9A-Za-z])") if names else None

    def name(self, path: str) -> str:
        """The path of a file, or where a link leads, in the capture."""
        if self._host is not None and "sys/fs/cgroup/" in path:
            path = self._host.sub("host", path)
        return self.text(path)

    def path(self, path: str) -> str:
        """A path that people gave a name, as the mounts of the capture have it."""
        return self.text(self._host.sub("host", path) if self._host is not None else path)

    def text(self, text: str) -> str:
        """*text* without identifiers: in names, variables and contents alike."""
        text = _IDENTIFIER.sub(lambda match: self._digits(match[0]), text)
        text = _VOLUME.sub("LVM-scrubbed", text)
        return _MULTIPATH.sub("mpath-scrubbed", text)

    def content(self, path: str, content: bytes) -> bytes:
        """The bytes that the capture has of the file at *path*."""
        if _UNREAD.fullmatch(path.rsplit("/", 1)[-1]):
            return b""
        text = os.fsdecode(content)
        if path == "proc/self/mountinfo":
            text = self._mounts(text)
        elif path == "proc/version" or path.endswith("/nvidia/version"):
            text = _BUILDER.sub("builder", text)
        text = _UNIQUE.sub(lambda match: match[1] + str(int(self._digits(f"{int(match[2]) & _LONGEST:016x}"), 16)), text)
        text = self.text(_SERIAL.sub("", text))
        if self._host is not None and path.endswith(_NAMED):
            text = self._host.sub("host", text)
        return os.fsencode(text)

    def server(self, name: str) -> str:
        """The name that stands for server *name*."""
        digest = hmac.new(self._key, os.fsencode(name.lower()), hashlib.sha256).hexdigest()
        return f"server-{digest[:6]}"

    def _digits(self, digits: str) -> str:
        """Other digits: each depends on itself and on those before it, so that what starts alike still does."""
        found = ""
        for index, digit in enumerate(digits):
            if digit in "-_":
                found += digit
                continue
            before = digits[:index].replace("-", "").replace("_", "").lower().encode()
            pad = hmac.new(self._key, before, hashlib.sha256).digest()[0] & 15
            found += f"{int(digit, 16) ^ pad:x}"
        return found

    def _mounts(self, text: str) -> str:
        """Of mountinfo the lines that can hold one of the paths, and those of the control groups."""
        return "".join(kept for line in text.split("\n") if (kept := self._mount(line)))

    def _mount(self, line: str) -> str:
        head, separator, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not separator or len(fields) < _FIELDS or len(rest) < 3:  # noqa: PLR2004 - type, source, options
            return ""
        kind, source, options = rest[0], rest[1], " ".join(rest[2:])
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[_POINT]).rstrip("/") + "/"
        if kind not in _KERNEL and not any(path.startswith(point) for path in self._paths):
            return ""
        if kind in _KERNEL:
            return f"{line}\n"
        return f"{head} - {kind} {self._source(kind, source)} {self._options(options)}\n"

    def _source(self, kind: str, source: str) -> str:
        source = remote.bare(kind, source)
        if match := _URL.fullmatch(source):
            return f"{match['scheme']}{self.server(match['hosts'])}{match['rest']}"
        if kind == "ceph" and (match := _CEPH.fullmatch(source)):
            return f"user@cluster{match['rest']}"
        match = (_LUSTRE if kind == "lustre" else _SERVED).fullmatch(source)
        if match:
            user = "user@" if match.groupdict().get("user") else ""
            return f"{user}{self._servers(match['hosts'], kind)}{match['rest']}"
        if match := _SHARED.fullmatch(source):
            return f"//{self.server(match['hosts'])}{match['rest']}"
        return _ADDRESS.sub(lambda found: self.server(found[0]), source)

    def _servers(self, hosts: str, kind: str) -> str:
        if kind == "lustre":  # address@network, several of them between colons
            parts = [part.partition("@") for part in hosts.split(":")]
            return ":".join(f"{self.server(host)}{at}{network}" for host, at, network in parts)
        return ",".join(self.server(host.strip("[]")) for host in hosts.split(","))

    def _options(self, options: str) -> str:
        """Options are of many kinds, user names among them: those that say how bytes are moved stay."""
        kept = []
        for option in options.split(","):
            name, _, value = option.partition("=")
            if name == "mon_addr":
                # The servers of Ceph, which its source does not name; a port may follow each.
                kept.append("mon_addr=" + "/".join(self.server(host) for host in value.split("/")))
            elif _OPTION.fullmatch(name):
                kept.append(option)
        return ",".join(kept) or "rw"


_LONGEST = (1 << 64) - 1
