"""Runs each cmocka program under the sanitizers; a program that was not built is an error."""
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SOURCES = sorted(HERE.rglob("*_test.c"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: str(s.relative_to(HERE).with_suffix("")))
def test_unit(source):
    program = ROOT / "build" / "asan" / "unit" / source.relative_to(HERE).with_suffix("")
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
