"""Checks the functions' zips: what they hold, how large they are, and that Amazon Linux 2023 can run them.

Usage: check_zips.py target/lambda/<function>...
"""

import re
import sys
import zipfile
from pathlib import Path

# The C library of provided.al2023.
GLIBC_MAX = (2, 34)
ZIP_BYTES_MAX = 6_000_000
CERTIFICATES = "infra/certs/rds-ca.pem"


def faults(folder: Path) -> list[str]:
    path = folder / "bootstrap.zip"
    if not path.exists():
        return [f"{path} is not there"]
    found = []
    size = path.stat().st_size
    if size > ZIP_BYTES_MAX:
        found.append(f"{path} has {size} bytes, more than {ZIP_BYTES_MAX}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for wanted in ("bootstrap", CERTIFICATES):
            if wanted not in names:
                found.append(f"{path} holds no {wanted}")
        program = archive.read("bootstrap") if "bootstrap" in names else b""
    if "bootstrap" in names and not (zipfile.ZipFile(path).getinfo("bootstrap").external_attr >> 16) & 0o111:
        found.append(f"{path}: bootstrap may not be executed")
    # The names of symbol versions stand in the binary as text.
    versions = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", program)}
    newest = max(versions, default=(0, 0))
    if newest > GLIBC_MAX:
        found.append(f"{path} needs glibc {newest[0]}.{newest[1]}; Amazon Linux 2023 has 2.34: build on a system with an older one")
    print(f"{folder.name}: {size} bytes zipped, {len(program)} bytes, glibc {newest[0]}.{newest[1]}")
    return found


def main() -> int:
    found = [fault for folder in sys.argv[1:] for fault in faults(Path(folder))]
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
