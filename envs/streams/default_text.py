"""A real text for those who name none: pages of the English Wikipedia as XML, the format of enwik8.

It comes from a package of the Python Package Index by pip (gensim ships it as test data; nothing of gensim is
installed or imported), is checked and kept in the user's cache folder. The text is under CC BY-SA.
"""

from __future__ import annotations

import bz2
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from memory_suite.envs.streams.text import ENWIK8_PAGE

PACKAGE = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEXT_BYTES = 6_089_746
TEXT_SHA256 = "34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4"
FILE_NAME = "enwiki-sample.xml"
# One wheel for all platforms, since it is only unpacked.
_WHEEL_OPTIONS = (
    "--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311",
    "--platform=manylinux_2_28_x86_64",
)  # fmt: skip


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/memory-suite`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memory-suite"


def default_text() -> Path:
    """The text's path; it is fetched if the cache does not have it, or has it damaged.

    Raises:
        FileNotFoundError: it cannot be fetched, or something else was; the message says what to do.
    """
    path = cache_folder() / FILE_NAME
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == TEXT_SHA256:
        return path
    try:
        text = _fetch()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may do this at once: each writes a file of its own, the last one stays.
        handle, temporary = tempfile.mkstemp(prefix=FILE_NAME, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        raise FileNotFoundError(
            f"data: no file was named, and the default text could not be fetched from {PACKAGE} by pip "
            f"({error}). Name a text file, such as enwik8 from {ENWIK8_PAGE}"
        ) from error
    return path


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-input", "--retries=1", "--dest", folder, *_WHEEL_OPTIONS, PACKAGE]
        pip = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if pip.returncode:
            last_line = (pip.stderr.strip() or "no message").splitlines()[-1]
            raise OSError(f"pip ended with {pip.returncode}: {last_line}")
        wheels = sorted(Path(folder).glob("*.whl"))
        if not wheels:
            raise OSError("pip left no wheel")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as member:
            # One byte more than expected at most, whatever the archive holds.
            text = bz2.BZ2File(member).read(TEXT_BYTES + 1)
    if hashlib.sha256(text).hexdigest() != TEXT_SHA256:
        raise ValueError(f"{MEMBER} is not the text it was")
    return text
