"""The soft engine against the host CPU: random user-mode instructions, everything compared."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = pathlib.Path("/proc/cpuinfo").read_text().split()
FAMILIES = {"integer", "x87", "mmx", "sse"} | {"avx"} & set(FLAGS) | ({"avx512"} if "avx512vl" in FLAGS else set())


SEEDS = (20261123, 20261124)
EACH = 5_000_000


def start(form, seed, count):
    return subprocess.Popen([ROOT / "build" / "insn-diff", "--seed", str(seed), "--count", str(count)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "LODGE_SOFT": form})


def finish(process, count):
    """Of each family it must have been at least a hundredth of all. Returns what it printed."""
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output[-4000:]
    counted = re.search(r"(\d+) instructions compared", output)
    assert counted and int(counted.group(1)) >= count
    families = {name: int(n) for name, n in re.findall(r"^  (\w+)\s+(\d+)$", output, re.M)}
    assert FAMILIES == {name for name, n in families.items() if n > count / 100}, families
    return output


@pytest.mark.timeout(900)
def test_ten_million_translated():
    """Through the translator, in two processes."""
    for process in [start("runs=1", seed, EACH) for seed in SEEDS]:
        output = finish(process, EACH)
        loops = re.search(r"^(\d+) loops", output, re.M)
        assert int(loops.group(1)) > EACH / 500, "loops are to take part in their second form"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["interpret", "block=1,runs=1", "slow,runs=1", "flush=50,runs=1", "lockstep,runs=1"])
def test_forms(form):
    finish(start(form, 7, 200_000), 200_000)
