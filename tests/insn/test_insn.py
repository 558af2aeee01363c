"""The soft engine against the host CPU: random user-mode instructions, everything compared."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = pathlib.Path("/proc/cpuinfo").read_text().split()
FAMILIES = {"integer", "x87", "mmx", "sse"} | {"avx"} & set(FLAGS) | ({"avx512"} if "avx512vl" in FLAGS else set())


@pytest.mark.timeout(900)
def test_million_instructions():
    run = subprocess.run(
        [ROOT / "build" / "insn-diff", "--seed", "20261123", "--count", "1000000"],
        capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    counted = re.search(r"(\d+) instructions compared", run.stdout)
    assert counted and int(counted.group(1)) >= 1_000_000
    families = dict(re.findall(r"^  (\w+)\s+(\d+)$", run.stdout, re.M))
    assert FAMILIES == {name for name, n in families.items() if int(n) > 10_000}, families
