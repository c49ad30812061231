"""
Every name loadspan gives to the outside: spans, stages, attributes, files of a run folder. Metrics and variables have modules of their own.

One row each with type, unit and meaning; the documentation is generated from these rows. Units are never part of a name:
sizes are bytes (int), durations seconds (float), timestamps nanoseconds since the epoch (int), as in OpenTelemetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOAD_SPAN: Final = "load model"
SCOPE: Final = "loadspan"
OWN: Final = "loadspan"
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

PARTS: Final = (*STAGES, OWN, OTHER)
"""What the time of a load is divided into: its stages, what loadspan itself needed to open and to close them, and the rest."""

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
OPERATION_EXTENT: Final = _attribute(
    "loadspan.operation.extent",
    "double",
    "s",
    "tallied stage",
    "seconds from the start of the first call to the end of the last; the span lasts as long as the calls had the load to themselves",
)
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
SYSTEM_DEVICE: Final = _attribute("system.device", "string", "", "stage with a file", "block device of the mount: /dev/nvme0n1p2")
SERVER_ADDRESS: Final = _attribute(
    "server.address", "string", "", "stage with a file, download", "server of a network filesystem, or the one that a download comes from"
)
STORAGE_KIND: Final = _attribute(
    "loadspan.storage.kind",
    "string",
    "",
    "stage with a file",
    "nvme, ssd, hdd, virtual, network, fuse, memory, overlay; absent where the kernel does not tell",
)
STORAGE_STACK: Final = _attribute(
    "loadspan.storage.stack",
    "string[]",
    "",
    "stage with a file",
    "disks and what was built on them, up to the mount's own device, where there is more than one: device mapper, RAID, loop",
)
STORAGE_MODEL: Final = _attribute("loadspan.storage.model", "string", "", "stage with a file", "model of the disk, where there is one")
STORAGE_ENCRYPTED: Final = _attribute(
    "loadspan.storage.encrypted",
    "boolean",
    "",
    "stage with a file",
    "true where dm-crypt (LUKS) lies under the file: the kernel decrypts what is read, which no stage shows",
)
STORAGE_READ_AHEAD: Final = _attribute("loadspan.storage.read_ahead", "int", "By", "stage with a file", "read-ahead of the device or mount")
STORAGE_SOURCE: Final = _attribute(
    "loadspan.storage.source",
    "string",
    "",
    "stage with a file",
    "what is mounted, where its block device is not known or there is none: server:/export, bucket",
)
STORAGE_SUBTYPE: Final = _attribute(
    "loadspan.storage.subtype", "string", "", "stage with a file", "what is behind FUSE (sshfs), or drvfs for a drive of Windows under WSL"
)
STORAGE_ROOT: Final = _attribute(
    "loadspan.storage.root", "string", "", "stage with a file", "folder of the filesystem that is mounted: bind mount, subvolume, subPath"
)
STORAGE_OPTIONS: Final = _attribute(
    "loadspan.storage.options", "string[]", "", "stage with a file", "mount options that decide about speed: rsize, nconnect, lowerdir, ..."
)
CACHE_RESIDENCY: Final = _attribute(
    "loadspan.cache.residency",
    "double",
    "1",
    "stage with a file, load",
    "share of the file or files in the page cache just before they were first read in this load; on FUSE and network filesystems and "
    "wherever else it cannot be known absent. Of files over 64 MiB a sample, right to about 0.07",
)
CACHE_EVICTED: Final = _attribute(
    "loadspan.cache.evicted",
    "double",
    "1",
    "load",
    "share of its biggest files that the kernel reclaimed from the page cache during the load; looked at in loads of a second and more, "
    "and where the memory limit was reached",
)
CACHE_COLD: Final = _attribute(
    "loadspan.cache.cold",
    "double",
    "1",
    "stage with a file",
    "storage_read / size, at most 1: 0 is a warm page cache, 1 a cold one. Absent on filesystems whose reads the kernel does not "
    "count (tmpfs, FUSE, network), of sparse and compressed files, for direct reads and for a deferred stage",
)
IO_STORAGE_READ: Final = _attribute("loadspan.io.storage_read", "int", "By", "stage, load", "bytes the block device delivered")
IO_READ: Final = _attribute(
    "loadspan.io.read",
    "int",
    "By",
    "stage, load",
    "bytes through read() and its kin; of the process, those of children that it waited for meanwhile are among them",
)
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
RUN_QUEUE_TIME: Final = _attribute(
    "loadspan.run_queue_time", "double", "s", "stage, load", "seconds in which the calling thread could run and waited for a CPU"
)
BLOCKED_WHERE: Final = _attribute(
    "loadspan.blocked.where",
    "string[]",
    "",
    "load",
    "kernel function in which the threads of the load slept, sampled: `function share`, of the readings of threads that were in a stage",
)
CPU_TIME: Final = _attribute("loadspan.cpu_time", "double", "s", "stage, load", "seconds on a CPU, summed over the threads of the scope")
DEVICE_TYPE: Final = _attribute("loadspan.device.type", "string", "", "to_device, load", "cuda, xpu, npu, mps, cpu, ...")
DEVICE_INDEX: Final = _attribute("loadspan.device.index", "int", "", "to_device, load", "as torch numbers it")
DEVICE_TIME: Final = _attribute(
    "loadspan.device.time", "double", "s", "to_device", "seconds on the device between events around the call; CUDA only"
)
DEVICE_NAME: Final = _attribute("loadspan.device.name", "string", "", "to_device, load", "product name")
DEVICE_PCI_ADDRESS: Final = _attribute("loadspan.device.pci_address", "string", "", "to_device, load", "domain:bus:device.function")
DEVICE_NUMA_NODE: Final = _attribute("loadspan.device.numa_node", "int", "", "to_device, load", "NUMA node the device is attached to")
DEVICE_MEMORY: Final = _attribute("loadspan.device.memory", "int", "By", "to_device, load", "memory of the device in all")
DEVICE_RELATIONS: Final = _attribute(
    "loadspan.device.relations",
    "string[]",
    "",
    "load",
    "between the devices of a load, as `nvidia-smi topo -m` names it: `0000:17:00.0 0000:65:00.0 PXB`",
)
LINK_GENERATION: Final = _attribute(
    "loadspan.link.generation",
    "int",
    "",
    "to_device, load",
    "PCIe generation of the narrowest link between host and device: the best reading taken while bytes moved, or within 0.1 s after",
)
LINK_WIDTH: Final = _attribute("loadspan.link.width", "int", "{lane}", "to_device, load", "lanes of that link, as above")
LINK_GENERATION_MAX: Final = _attribute(
    "loadspan.link.generation.max", "int", "", "to_device, load", "highest generation that both ends of that link support"
)
LINK_WIDTH_MAX: Final = _attribute("loadspan.link.width.max", "int", "{lane}", "to_device, load", "most lanes that both ends support")
LINK_BANDWIDTH: Final = _attribute(
    "loadspan.link.bandwidth", "double", "By/s", "to_device, load", "of that link in one direction by its generation and width, as read"
)
LINK_BANDWIDTH_MAX: Final = _attribute(
    "loadspan.link.bandwidth.max", "double", "By/s", "to_device, load", "what it would be at the most that both ends support"
)
LINK_DEGRADED: Final = _attribute(
    "loadspan.link.degraded",
    "boolean",
    "",
    "to_device, load",
    "whether the link ran below what both ends support while bytes moved; absent where that was not read three times: an idle link is slow",
)
LINK_ENDS: Final = _attribute("loadspan.link.ends", "string", "", "to_device, load", "PCI addresses of the two ends of that link")
LINK_PATH: Final = _attribute(
    "loadspan.link.path", "string[]", "", "to_device, load", "hop by hop from the host to the device: `parent child Gen4 x8 of Gen4 x16`"
)
THREAD_NUMA_NODE: Final = _attribute(
    "loadspan.thread.numa_node",
    "int",
    "",
    "to_device, load",
    "node of the CPUs that the calling thread may use; absent where they are of several",
)
NUMA_RELATION: Final = _attribute(
    "loadspan.numa.relation", "string", "", "to_device, load", "local or remote: whether the thread's CPUs are those near the device"
)
HOST_MEMORY_NUMA_NODE: Final = _attribute(
    "loadspan.host_memory.numa_node", "int", "", "to_device", "node that holds the pages of the source; absent where they are on several"
)
COPY_COUNT: Final = _attribute("loadspan.copy.count", "int", "{copy}", "to_device", "tensors copied to the device")
COPY_SIZE_MIN: Final = _attribute("loadspan.copy.size.min", "int", "By", "to_device", "smallest of these copies")
COPY_SIZE_MEDIAN: Final = _attribute("loadspan.copy.size.median", "int", "By", "to_device", "median of these copies")
COPY_SIZE_MAX: Final = _attribute("loadspan.copy.size.max", "int", "By", "to_device", "largest of these copies")
HOST_MEMORY_PINNED: Final = _attribute("loadspan.host_memory.pinned", "boolean", "", "to_device", "the source was page-locked")
CACHE_HIT: Final = _attribute(
    "loadspan.cache.hit",
    "boolean",
    "",
    "stage, load",
    "whether the shared-memory or application cache had what was looked for. Making a segment of shared memory is a miss, reading or "
    "mapping a file in /dev/shm a hit. On a load whether every `cache` stage of it was a hit",
)
CACHE_MISS_TIME: Final = _attribute(
    "loadspan.cache.miss_time",
    "double",
    "s",
    "load",
    "what its cache misses cost: exclusive seconds of download, read, decrypt, deserialize, compile and cache, from the lookup that missed "
    "until the cache is filled, that included; where nothing is seen to be filled, to the next hit or the end of the load. A hit needs "
    "none of them. Where bytes are brought into a segment that was made for them, deserialize is left out: a hit needs it, too",
)
DTYPE: Final = _attribute(
    "loadspan.dtype", "string", "", "convert, load_state_dict", "dtype of the weights afterwards, where it is another than before"
)
MADE: Final = _attribute(
    "loadspan.made",
    "string",
    "",
    "initialize",
    "what was made: class of the module, tokenizer or configuration, or the code that was imported",
)
KEY_DERIVATION_TIME: Final = _attribute(
    "loadspan.key_derivation.time", "double", "s", "decrypt", "seconds of scrypt, Argon2 or PBKDF2 in this stage, apart from the cipher"
)
CIPHER: Final = _attribute("loadspan.cipher", "string", "", "decrypt", "AES-GCM, ChaCha20-Poly1305, Fernet, ..., scrypt")
MERGED_LAYERS: Final = _attribute("loadspan.merge.layers", "int", "{layer}", "merge_lora", "layers whose base weights got a delta")
MERGE_REPEATED: Final = _attribute(
    "loadspan.merge.repeated",
    "int",
    "{layer}",
    "merge_lora",
    "layers whose base weights had the delta already: nothing was done there; absent where there are none",
)
DELTA_SIZE: Final = _attribute(
    "loadspan.merge.delta_size",
    "int",
    "By",
    "merge_lora",
    "bytes of the deltas that were computed (B x A, as big as the base weights): work, nothing that was read",
)
DELTA_TIME: Final = _attribute(
    "loadspan.merge.delta_time",
    "double",
    "s",
    "merge_lora",
    "seconds in which they were computed; the rest of a merge adds them. Absent on devices, which compute while the host goes on",
)
INJECTED_LAYERS: Final = _attribute(
    "loadspan.inject.layers",
    "int",
    "{layer}",
    "merge_lora, initialize",
    "layers that got adapter modules; the seconds are those of the `initialize` in the merge_lora",
)
ADAPTER_ACTION: Final = _attribute(
    "loadspan.adapter.action",
    "string",
    "",
    "merge_lora",
    "what was done with the adapter: load (read and injected), swap (read over another), merge, unmerge, activate, combine, remove",
)
PARTITION: Final = _attribute(
    "loadspan.partition",
    "double",
    "s",
    "load",
    "prefix: `loadspan.partition.<stage>`, `.loadspan` (what loadspan itself needed) and `.other` are exclusive seconds and add up to it",
)
COVERAGE: Final = _attribute("loadspan.coverage", "double", "1", "load", "1 - other / duration")
FINDINGS: Final = _attribute("loadspan.findings", "string[]", "", "load", "ids of what should be done about it, the most seconds first")
FINDING: Final = _attribute(
    "loadspan.finding", "string", "", "load", "prefix: `loadspan.finding.<id>` is the advice in a sentence, with its evidence"
)
FINDING_ID: Final = _attribute("loadspan.finding.id", "string", "", "metrics", "id of a finding; there are as many as there are rules")
OTHER_FRAMES: Final = _attribute(
    "loadspan.other.frames", "string[]", "", "load", "what the loading thread ran in no stage, sampled: `function (file:line) share`"
)
MEMORY_LIMIT: Final = _attribute("loadspan.memory.limit", "int", "By", "load", "memory limit of the process's control group")
MEMORY_USAGE: Final = _attribute(
    "loadspan.memory.usage", "int", "By", "load", "what the group used when the load ended, page cache included"
)
MEMORY_LIMIT_HITS: Final = _attribute(
    "loadspan.memory.limit.hits", "int", "{event}", "load", "times the group reached its limit during the load"
)
MEMORY_REFAULT: Final = _attribute(
    "loadspan.memory.refault",
    "int",
    "By",
    "load",
    "file pages that had been evicted from the page cache and were read again during the load",
)
MEMORY_REFAULT_SCOPE: Final = _attribute("loadspan.memory.refault.scope", "string", "", "load", "who read them: cgroup or host")
MEMORY_PRESSURE_TIME: Final = _attribute(
    "loadspan.memory.pressure_time", "double", "s", "load", "seconds in which some task waited for memory (PSI)"
)
IO_PRESSURE_TIME: Final = _attribute(
    "loadspan.io.pressure_time", "double", "s", "load", "seconds in which some task waited for storage (PSI)"
)
PRESSURE_SCOPE: Final = _attribute("loadspan.pressure.scope", "string", "", "load", "whose tasks those of both are: cgroup or host")
SWAP_IN: Final = _attribute("loadspan.swap.in", "int", "By", "load", "bytes read back from swap during the load")
SWAP_SCOPE: Final = _attribute("loadspan.swap.scope", "string", "", "load", "who read them: cgroup or host")
SWAP_USAGE: Final = _attribute("loadspan.swap.usage", "int", "By", "load", "bytes of this process in swap when the load ended")
DISK_READ: Final = _attribute(
    "loadspan.disk.read",
    "int",
    "By",
    "load",
    "what the block device under the files delivered during the load, to everybody on the machine",
)
DISK_UTILIZATION: Final = _attribute(
    "loadspan.disk.utilization", "double", "1", "load", "share of the time in which it had requests in flight"
)
DISK_LATENCY: Final = _attribute("loadspan.disk.latency", "double", "s", "load", "mean seconds from a read request to its end")
DISK_QUEUE: Final = _attribute("loadspan.disk.queue", "double", "{request}", "load", "mean number of requests in flight or waiting")
CURVE_TIME: Final = _attribute(
    "loadspan.curve.time",
    "double[]",
    "s",
    "load",
    "moments of the throughput curve, at most 120, from the start of the load; the other lists of the curve belong to them",
)
CURVE_SIZE: Final = _attribute(
    "loadspan.curve.size",
    "int[]",
    "By",
    "load",
    "bytes that the stage which had moved most had moved by then: of those that bring bytes, else of any",
)
CURVE_READ: Final = _attribute("loadspan.curve.read", "int[]", "By", "load", "bytes that the process had got through read() by then")
CURVE_STORAGE_READ: Final = _attribute(
    "loadspan.curve.storage_read", "int[]", "By", "load", "bytes that it had got from block devices by then"
)
CURVE_DISK: Final = _attribute(
    "loadspan.curve.disk",
    "int[]",
    "By",
    "load",
    "prefix: `loadspan.curve.disk.<device>` is what that block device had delivered by then, to everybody on the machine",
)
SAMPLER_TIME: Final = _attribute(
    "loadspan.sampler.time", "double", "s", "load", "CPU seconds of loadspan's own sampler thread during the load"
)
MODEL_NAME: Final = _attribute("loadspan.model.name", "string", "", "stage, load", "model, as the program or the loader calls it")
REQUEST_MODEL: Final = _attribute("gen_ai.request.model", "string", "", "load", "the same, to join with inference spans")
LOADER: Final = _attribute("loadspan.loader", "string", "", "load", "library whose function opened the load")
ADAPTER_NAME: Final = _attribute("loadspan.adapter.name", "string", "", "merge_lora", "LoRA adapter")
IMPLICIT: Final = _attribute(
    "loadspan.implicit", "boolean", "", "load", "true when no call declared the load: it was put together from stages"
)
INNER: Final = _attribute("loadspan.inner", "boolean", "", "load", "true for a load inside another of its process; absent otherwise")
FOLDED: Final = _attribute("loadspan.folded.count", "int", "{load}", "load", "repetitions that this one span stands for")
SPAN_LIMIT: Final = _attribute(
    "loadspan.span.folded", "int", "{call}", "load", "coarse calls tallied because the load had reached its span limit"
)
REBUILT: Final = _attribute(
    "loadspan.rebuilt",
    "boolean",
    "",
    "stage, load",
    "true where the process was killed before it could write this span: `loadspan view` made it; it ends when the process was last seen",
)
LOAD_ID: Final = _attribute("loadspan.load.id", "string", "", "load", "what all processes of a group that loads together have in common")
RANK: Final = _attribute("loadspan.rank", "int", "", "load", "rank of this process in that group; absent for a single process")
RANK_LOCAL: Final = _attribute("loadspan.rank.local", "int", "", "load", "rank of this process on its machine")
WORLD_SIZE: Final = _attribute("loadspan.world_size", "int", "{process}", "load", "processes of that group")
PROCESS_PID: Final = _attribute("process.pid", "int", "", "stage, load", "process")
THREAD_NAME: Final = _attribute("thread.name", "string", "", "stage, load", "thread in which the call ran")
ERROR_TYPE: Final = _attribute("error.type", "string", "", "stage, load", "qualified name of the exception; absent on success")


def curve_of_disk(device: str) -> str:
    """Attribute that holds the curve of a block device, as the kernel names it."""
    return f"{CURVE_DISK}.{device}"


def partition(stage: str) -> str:
    """Attribute that holds the exclusive seconds of *stage*, or of another of `PARTS`, on the load."""
    return f"{PARTITION}.{stage}"


def finding(known: str) -> str:
    """Attribute that holds the advice of the finding with that id."""
    return f"{FINDING}.{known}"


TRACE_FILE: Final = "trace-{pid}.jsonl"
STATE_FILE: Final = "state-{pid}.json"
RUN_FILE: Final = "run.json"
