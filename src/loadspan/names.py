"""
Every name loadspan gives to the outside: spans, stages, attributes, environment variables, files of a run folder.

One row each with type, unit and meaning; the documentation is generated from these rows. Units are never part of a name:
sizes are bytes (int), durations seconds (float), timestamps nanoseconds since the epoch (int), as in OpenTelemetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOAD_SPAN: Final = "load model"
SCOPE: Final = "loadspan"
OTHER: Final = "other"

DOWNLOAD: Final = "download"
READ: Final = "read"
DECRYPT: Final = "decrypt"
DESERIALIZE: Final = "deserialize"
INITIALIZE: Final = "initialize"
LOAD_STATE_DICT: Final = "load_state_dict"
CONVERT: Final = "convert"
MERGE_LORA: Final = "merge_lora"
TO_DEVICE: Final = "to_device"
COMPILE: Final = "compile"
CACHE: Final = "cache"

STAGES: Final = (
    DOWNLOAD,
    READ,
    DECRYPT,
    DESERIALIZE,
    INITIALIZE,
    LOAD_STATE_DICT,
    CONVERT,
    MERGE_LORA,
    TO_DEVICE,
    COMPILE,
    CACHE,
)
"""The stage names, in the order in which a load usually meets them."""

SOURCE_STAGES: Final = frozenset({DOWNLOAD, READ, DECRYPT, DESERIALIZE})
"""Stages that bring bytes which something later has to consume."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A span attribute: its type, its UCUM unit ("" for none), the spans it is on and what it means."""

    name: str
    type: str
    unit: str
    on: str
    meaning: str


ATTRIBUTES: list[Attribute] = []


def _attribute(name: str, kind: str, unit: str, on: str, meaning: str) -> str:
    ATTRIBUTES.append(Attribute(name, kind, unit, on, meaning))
    return name


STAGE: Final = _attribute("loadspan.stage", "string", "", "stage", "one of the stage names")
SIZE: Final = _attribute(
    "loadspan.size",
    "int",
    "By",
    "stage, load",
    "bytes brought or transformed: source bytes of read and decrypt, tensor bytes of deserialize and load_state_dict, "
    "destination bytes of to_device and convert, adapter bytes of merge_lora; on a load the bytes that entered it",
)
THROUGHPUT: Final = _attribute(
    "loadspan.throughput", "double", "By/s", "stage", "size / busy time; absent when the call is lazy or the size unknown"
)
BUSY_TIME: Final = _attribute("loadspan.busy_time", "double", "s", "tallied stage", "sum of the seconds inside the calls")
OPERATION_COUNT: Final = _attribute("loadspan.operation.count", "int", "{call}", "tallied stage", "calls")
CONCURRENCY: Final = _attribute("loadspan.concurrency", "int", "{call}", "tallied stage", "most calls at once")
SLOWEST: Final = _attribute("loadspan.slowest", "string[]", "", "tallied stage", "up to five `name size seconds`")
DEFERRED: Final = _attribute(
    "loadspan.deferred", "boolean", "", "stage", "true when the bytes arrive later (mmap, non-blocking copy, lazy reader)"
)
FORMAT: Final = _attribute("loadspan.format", "string", "", "stage", "safetensors, zip, pickle, gguf, ...")
FILE_PATH: Final = _attribute("file.path", "string", "", "stage", "the file; its name alone with LOADSPAN_PATHS=basename")
FILE_SIZE: Final = _attribute("file.size", "int", "By", "stage", "size of the file or files")
FILE_COUNT: Final = _attribute("loadspan.file.count", "int", "{file}", "stage", "files, where they are more than one")
READ_METHOD: Final = _attribute("loadspan.read.method", "string", "", "stage with a file", "mmap, buffered, direct, memory")
FILESYSTEM_TYPE: Final = _attribute("system.filesystem.type", "string", "", "stage with a file", "ext4, nfs4, fuse.sshfs, ...")
FILESYSTEM_MOUNTPOINT: Final = _attribute("system.filesystem.mountpoint", "string", "", "stage with a file", "where it is mounted")
CACHE_COLD: Final = _attribute(
    "loadspan.cache.cold",
    "double",
    "1",
    "stage with a file",
    "storage_read / size, at most 1: 0 is a warm page cache, 1 a cold one. Absent on filesystems whose reads the kernel does not "
    "count (tmpfs, FUSE, network) and for a deferred stage",
)
IO_STORAGE_READ: Final = _attribute("loadspan.io.storage_read", "int", "By", "stage, load", "bytes the block device delivered")
IO_READ: Final = _attribute("loadspan.io.read", "int", "By", "stage, load", "bytes through read() and its kin")
IO_SCOPE: Final = _attribute(
    "loadspan.io.scope",
    "string",
    "",
    "stage, load",
    "whose counters these are: `process`, or `thread` where other stages ran at the same time",
)
FAULT_MAJOR: Final = _attribute("loadspan.fault.major", "int", "{fault}", "stage, load", "page faults that waited for I/O")
FAULT_MINOR: Final = _attribute("loadspan.fault.minor", "int", "{fault}", "stage, load", "page faults that did not")
BLOCKED_TIME: Final = _attribute(
    "loadspan.blocked_time",
    "double",
    "s",
    "stage, load",
    "seconds in which the calling thread was asleep: duration less time on a CPU less time waiting for one. I/O, a lock or a timer",
)
CPU_TIME: Final = _attribute("loadspan.cpu_time", "double", "s", "stage, load", "seconds on a CPU, summed over the threads of the scope")
DEVICE_TYPE: Final = _attribute("loadspan.device.type", "string", "", "to_device, load", "cuda, xpu, npu, mps, cpu, ...")
DEVICE_INDEX: Final = _attribute("loadspan.device.index", "int", "", "to_device, load", "as torch numbers it")
DEVICE_TIME: Final = _attribute(
    "loadspan.device.time", "double", "s", "to_device", "seconds on the device between events around the call; CUDA only"
)
HOST_MEMORY_PINNED: Final = _attribute("loadspan.host_memory.pinned", "boolean", "", "to_device", "the source was page-locked")
CACHE_HIT: Final = _attribute("loadspan.cache.hit", "boolean", "", "cache", "shared-memory or application cache hit")
DTYPE: Final = _attribute("loadspan.dtype", "string", "", "convert", "dtype of the weights afterwards")
KEY_DERIVATION_TIME: Final = _attribute(
    "loadspan.key_derivation.time", "double", "s", "decrypt", "seconds of scrypt, Argon2 or PBKDF2 in this stage, apart from the cipher"
)
CIPHER: Final = _attribute("loadspan.cipher", "string", "", "decrypt", "AES-GCM, ChaCha20-Poly1305, Fernet, ..., scrypt")
MERGED_LAYERS: Final = _attribute("loadspan.merge.layers", "int", "{layer}", "merge_lora", "layers whose base weights got a delta")
INJECTED_LAYERS: Final = _attribute("loadspan.inject.layers", "int", "{layer}", "merge_lora", "layers that got adapter modules")
PARTITION: Final = _attribute(
    "loadspan.partition",
    "double",
    "s",
    "load",
    "prefix: `loadspan.partition.<stage>` and `.other` are exclusive seconds and add up to the load",
)
COVERAGE: Final = _attribute("loadspan.coverage", "double", "1", "load", "1 - other / duration")
OTHER_FRAMES: Final = _attribute(
    "loadspan.other.frames", "string[]", "", "load", "what the loading thread ran in no stage, sampled: `function (file:line) share`"
)
MODEL_NAME: Final = _attribute("loadspan.model.name", "string", "", "stage, load", "model, as the program or the loader calls it")
REQUEST_MODEL: Final = _attribute("gen_ai.request.model", "string", "", "load", "the same, to join with inference spans")
LOADER: Final = _attribute("loadspan.loader", "string", "", "load", "library whose function opened the load")
ADAPTER_NAME: Final = _attribute("loadspan.adapter.name", "string", "", "merge_lora", "LoRA adapter")
IMPLICIT: Final = _attribute(
    "loadspan.implicit", "boolean", "", "load", "true when no call declared the load: it was put together from stages"
)
FOLDED: Final = _attribute("loadspan.folded.count", "int", "{load}", "load", "repetitions that this one span stands for")
SPAN_LIMIT: Final = _attribute(
    "loadspan.span.folded", "int", "{call}", "load", "coarse calls tallied because the load had reached its span limit"
)
PROCESS_PID: Final = _attribute("process.pid", "int", "", "stage, load", "process")
THREAD_NAME: Final = _attribute("thread.name", "string", "", "stage, load", "thread in which the call ran")
ERROR_TYPE: Final = _attribute("error.type", "string", "", "stage, load", "qualified name of the exception; absent on success")


def partition(stage: str) -> str:
    """Attribute that holds the exclusive seconds of *stage* (or of `other`) on the load."""
    return f"{PARTITION}.{stage}"


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: default as text, accepted values, meaning."""

    name: str
    default: str
    values: str
    meaning: str


RUN_DIR: Final = "LOADSPAN_DIR"
FILE_READS: Final = "LOADSPAN_FILE_READS"
MIN_SIZE: Final = "LOADSPAN_MIN_SIZE"
IDLE_TIMEOUT: Final = "LOADSPAN_IDLE_TIMEOUT"
PENDING_TIMEOUT: Final = "LOADSPAN_PENDING_TIMEOUT"
PATHS: Final = "LOADSPAN_PATHS"

VARIABLES: Final = (
    Variable(RUN_DIR, "", "a folder", "where the `loadspan` exporter writes its trace and state files; `loadspan run` sets it"),
    Variable(FILE_READS, "on", "on, off", "record binary reads of files of 16 MiB and more through `open`, numpy and `mmap`"),
    Variable(MIN_SIZE, "1048576", "bytes", "an implicit load that moved less and lasted under 10 ms is dropped"),
    Variable(IDLE_TIMEOUT, "1", "seconds", "silence after which an implicit load without pending bytes ends"),
    Variable(PENDING_TIMEOUT, "30", "seconds", "silence after which an implicit load ends although nothing consumed its bytes"),
    Variable(PATHS, "full", "full, basename", "how files are named in `file.path`"),
)

TRACE_FILE: Final = "trace-{pid}.jsonl"
STATE_FILE: Final = "state-{pid}.json"
RUN_FILE: Final = "run.json"
