"""A real browser without a window: what a page looks like once its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _browse(url: str, profile: Path, *flags: str, width: int, height: int, wait: float) -> str:
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium and no Chrome is installed")
    plain = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", f"--user-data-dir={profile}")
    size = (f"--window-size={width},{height}", f"--virtual-time-budget={wait * 1000:.0f}")
    done = subprocess.run([program, *plain, *size, *flags, url], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def dom(url: str, profile: Path, *, width: int = 1600, height: int = 1000, wait: float = 8) -> str:
    """A page's HTML after some seconds (of the page, which the browser lets pass at once)."""
    return _browse(url, profile, "--dump-dom", width=width, height=height, wait=wait)


def picture(url: str, profile: Path, file: Path, *, width: int = 1600, height: int = 1000, wait: float = 8) -> None:
    """A page as a PNG, as `dom` waits."""
    _browse(url, profile, f"--screenshot={file}", width=width, height=height, wait=wait)
    assert file.read_bytes().startswith(b"\x89PNG")
