"""Probes are started by a command and by nothing else: neither while a load is recorded nor while it is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "loadspan"


def test_only_commands_name_the_probes() -> None:
    naming = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if "loadspan.probes" in path.read_text()}
    assert naming <= {"probes", "commands"}


def test_the_probes_import_no_library_of_a_host() -> None:
    code = (
        "import sys; from loadspan.probes import crypto, device, storage; crypto.plan(); device.plan('cuda:0')\n"
        "print([name for name in ('torch', 'numpy', 'cryptography', 'Crypto', 'nacl', 'opentelemetry.sdk') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
