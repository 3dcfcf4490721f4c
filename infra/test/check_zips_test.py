"""What the check of the zips lets pass, and what it refuses."""

import contextlib
import io
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import check_zips  # noqa: E402


class Zips(unittest.TestCase):
    def faults(self, program: bytes | None, function="executor", mode=0o755, certificates=True) -> str:
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / function
            folder.mkdir()
            with zipfile.ZipFile(folder / "bootstrap.zip", "w", zipfile.ZIP_STORED) as archive:
                if program is not None:
                    member = zipfile.ZipInfo("bootstrap")
                    member.external_attr = mode << 16
                    archive.writestr(member, program)
                if certificates:
                    archive.writestr(check_zips.CERTIFICATES, "")
            with contextlib.redirect_stdout(io.StringIO()):
                return "; ".join(check_zips.faults(folder))

    def test_a_good_one_passes(self):
        self.assertEqual(self.faults(b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_PRIVATE\0"), "")

    def test_a_newer_c_library_is_refused(self):
        for newer in (b"GLIBC_2.35", b"GLIBC_2.100", b"GLIBC_3.0"):
            told = self.faults(b"GLIBC_2.9\0" + newer)
            self.assertIn(f"needs {newer.decode().lower().replace('_', ' ')}; Amazon Linux 2023 has 2.34", told)

    def test_what_is_too_large_is_refused(self):
        self.assertIn("bootstrap.zip has", self.faults(b"x" * 6_000_001))
        self.assertNotIn("bootstrap has", self.faults(b"x" * 12_000_000))
        for function, most in (("executor", 12_000_000), ("sweeper", 12_000_000), ("management", 14_000_000)):
            told = self.faults(b"x" * (most + 1), function)
            self.assertIn(f"bootstrap has {most + 1} bytes, more than {most}", told)

    def test_what_lambda_could_not_start_is_refused(self):
        self.assertIn("holds no bootstrap", self.faults(None))
        self.assertIn("may not be executed", self.faults(b"", mode=0o644))
        self.assertIn("holds no infra/certs/rds-ca.pem", self.faults(b"", certificates=False))
        self.assertEqual(check_zips.faults(Path("nowhere")), ["nowhere/bootstrap.zip is not there"])


if __name__ == "__main__":
    unittest.main()
