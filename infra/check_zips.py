"""Checks the functions' zips: what they hold, how large they are, and that Amazon Linux 2023 can run them.

Usage: check_zips.py target/lambda/<function>...
"""

import re
import sys
import zipfile
from pathlib import Path

# The C library of provided.al2023.
GLIBC_MAX = (2, 34)
# Size is cold-start time.
ZIP_BYTES_MAX = 6_000_000
PROGRAM_BYTES_MAX = {"management": 14_000_000}
OTHER_PROGRAM_BYTES_MAX = 12_000_000
CERTIFICATES = "infra/certs/rds-ca.pem"


def faults(folder: Path) -> list[str]:
    """What is wrong with the zip of one function; prints what it measured."""
    path = folder / "bootstrap.zip"
    if not path.exists():
        return [f"{path} is not there"]
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        found = [f"{path} holds no {name}" for name in ("bootstrap", CERTIFICATES) if name not in members]
        if "bootstrap" not in members:
            return found
        program = archive.read("bootstrap")
    if not (members["bootstrap"].external_attr >> 16) & 0o111:
        found.append(f"{path}: bootstrap may not be executed")
    program_max = PROGRAM_BYTES_MAX.get(folder.name, OTHER_PROGRAM_BYTES_MAX)
    for what, size, most in (
        (str(path), path.stat().st_size, ZIP_BYTES_MAX),
        (f"{path}: bootstrap", len(program), program_max),
    ):
        if size > most:
            found.append(f"{what} has {size} bytes, more than {most}")
    newest = glibc(program)
    if newest > GLIBC_MAX:
        found.append(
            f"{path} needs glibc {version(newest)}; Amazon Linux 2023 has {version(GLIBC_MAX)}: build on a system "
            "with an older one, such as a Debian 12 container"
        )
    print(f"{folder.name}: {path.stat().st_size} bytes zipped, {len(program)} bytes, glibc {version(newest)}")
    return found


def glibc(program: bytes) -> tuple[int, int]:
    """The newest version of glibc that a program asks for: the names of symbol versions stand in it as text."""
    found = re.findall(rb"GLIBC_(\d+)\.(\d+)", program)
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def version(of: tuple[int, int]) -> str:
    return f"{of[0]}.{of[1]}"


def main() -> int:
    found = [fault for folder in sys.argv[1:] for fault in faults(Path(folder))]
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
