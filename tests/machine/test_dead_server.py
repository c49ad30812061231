"""
A server that stops answering in the middle of a load: what the program itself does not ask it is asked by nobody.

The server is that of the FUSE filesystem of these tests, stopped by a signal. Seconds here are hours of waiting: it is woken up after
them, so that a test that fails ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import children

if TYPE_CHECKING:
    from pathlib import Path

STOPPED = 6.0
SIZE = 24 << 20

MOUNT = """
import latencyfs, os, signal, sys, threading, time
latencyfs._VALID = 0  # the kernel asks the server each time, as it does after a while
folder, size, stopped = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.mkdir(folder + "/point")
mounted = latencyfs.mount(folder + "/point", size, 0.0)
path = folder + "/point/" + latencyfs.NAME
with open(folder + "/local", "wb") as file:
    file.write(bytes(size))
"""
LOAD = """
import loadspan, time

def stop():
    os.kill(mounted.server, signal.SIGSTOP)
    if not os.fork():
        os.closerange(0, 3)
        time.sleep(stopped)
        os.kill(mounted.server, signal.SIGCONT)
        os._exit(0)

file = open(path, "rb")
try:
    with loadspan.load("remote"):
        file.read(20 << 20)
        stop()
        begun = time.monotonic()
    with loadspan.load("local"), open(folder + "/local", "rb") as other:
        other.read()
    assert time.monotonic() - begun < stopped / 2, "somebody asked the server"
finally:
    os.kill(mounted.server, signal.SIGCONT)
    file.close()
    mounted.unmount()
"""


def test_the_end_of_a_load_and_the_loads_after_it_wait_for_no_dead_server(tmp_path: Path) -> None:
    children.need_root()
    remote, local = children.loads(LOAD, tmp_path, SIZE, STOPPED, setup=MOUNT, inside=children.UNSHARE)
    read = remote["children"][0]["attributes"]
    assert (read["loadspan.size"], read["file.size"], read["loadspan.storage.kind"]) == (20 << 20, SIZE, "fuse")
    assert local["children"][0]["attributes"]["file.path"] == str(tmp_path / "local")
