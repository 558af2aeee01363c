"""The soft engine against the host CPU: random user-mode instructions, everything compared."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.skipif("avx512vl" not in pathlib.Path("/proc/cpuinfo").read_text(),
                    reason="the streams use AVX-512, which this host lacks")
@pytest.mark.timeout(900)
def test_million_instructions():
    run = subprocess.run(
        [ROOT / "build" / "insn-diff", "--seed", "20261123", "--count", "1000000"],
        capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    counted = re.search(r"(\d+) instructions compared", run.stdout)
    assert counted and int(counted.group(1)) >= 1_000_000
    families = dict(re.findall(r"^  (\w+)\s+(\d+)$", run.stdout, re.M))
    assert len(families) == 6 and all(int(n) > 10_000 for n in families.values()), families
