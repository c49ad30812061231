"""
What the machine says: small readers, each absent where the kernel does not tell.

Kernel files are read through `tree` (this machine or a recorded one) or `kept` (this machine, again and again). Upon them, from below:

- counters of this process: `counters`; memory around it: `cgroups`, `memory`
- what a file is stored on: `mounts`, `remote` (servers, names, options), `disks`, `blocks` (what lies under a device), `storage` (all of
  it), `files` (what is remembered of a file that was met)
- how much of a file is in the page cache: `resident` (the two system calls), `pagecache`
- the way to a device: `numa`, `pci`, `links`
- devices: `nvidia` and `kfd` (kernel drivers), `drivers` and `nvml` (libraries), `visible` (environment variables), `accelerators` (those
  of the machine), `device` (the one that torch means)
- the machine as a whole: `machine`
- what was measured of it, and is kept from one run to the next: `rates`, `keeping`, `ceilings`
"""
