"""Packs programs that are built already, as cargo-lambda packs those that it builds.

Usage: pack_zips.py <folder> <program>...

It is for tests: what is packed so is not optimised, and may need a newer C library than Lambda has.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CERTIFICATES = "infra/certs/rds-ca.pem"
ROOT = Path(__file__).resolve().parent.parent


def pack(folder: Path, program: Path) -> None:
    target = folder / program.name
    target.mkdir(parents=True, exist_ok=True)
    bootstrap = target / "bootstrap"
    # Two thirds of a debug build are symbols.
    if shutil.which("strip") is None or subprocess.run(["strip", "-o", bootstrap, program]).returncode != 0:
        shutil.copyfile(program, bootstrap)
    bootstrap.chmod(0o755)
    with zipfile.ZipFile(target / "bootstrap.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(bootstrap, "bootstrap")
        archive.write(ROOT / CERTIFICATES, CERTIFICATES)
    bootstrap.unlink()


def main() -> None:
    folder, *programs = sys.argv[1:]
    for program in programs:
        pack(Path(folder), Path(program))


if __name__ == "__main__":
    main()
