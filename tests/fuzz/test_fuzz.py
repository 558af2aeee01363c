"""A short run of every fuzz target; `make fuzz TARGET=name` runs one for long."""
import pathlib
import subprocess

import pytest

from conftest import BUILD

HERE = pathlib.Path(__file__).parent
TARGETS = sorted(source.stem for source in HERE.glob("*_fuzz.c"))


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target, tmp_path):
    run = subprocess.run([BUILD / "fuzz" / target, "-runs=20000", "-seed=1", "-max_total_time=8",
                          f"-artifact_prefix={tmp_path}/"],
                         capture_output=True, text=True, errors="replace", timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "Done" in run.stderr
