"""The command line: what is refused, with which exit code, and that the sentence helps."""
import json
import pathlib
import os
import subprocess

import pytest

from conftest import LODGE, lodge


def refused(code, *args):
    run = lodge(*args)
    assert run.returncode == code, (run.returncode, run.stderr)
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("lodge: ")
    return lines[0]


@pytest.mark.parametrize("args,words", [
    ([], ["--help"]),
    (["rnu"], ["'rnu'", "run"]),
    (["frobnicate"], ["'frobnicate'"]),
    (["run"], ["--kernel", "--disk"]),
    (["run", "--kernle", "x"], ["--kernle", "did you mean --kernel"]),
    (["run", "--kernel"], ["--kernel", "value"]),
    (["run", "word"], ["word"]),
    (["run", "--no-reboot=yes", "--kernel", "x"], ["--no-reboot", "no value"]),
    (["run", "--kernel", "x", "--cpus", "0"], ["--cpus"]),
    (["run", "--kernel", "x", "--cpus", "65"], ["64"]),
    (["run", "--kernel", "x", "--cpus", "2x"], ["--cpus"]),
    (["run", "--kernel", "x", "--memory", "lots"], ["--memory"]),
    (["run", "--kernel", "x", "--memory", "99999999999999G"], ["--memory"]),
    (["run", "--kernel", "x", "--memory", "4K"], ["--memory"]),
    (["run", "--kernel", "x", "--code-cache", "much"], ["--code-cache", "much", "48M"]),
    (["run", "--kernel", "x", "--code-cache", "4095K"], ["--code-cache", "4095K", "4M", "1024M"]),
    (["run", "--kernel", "x", "--code-cache", "2G"], ["--code-cache", "2G", "1024M"]),
    (["run", "--kernel", "x", "--engine", "sotf"], ["soft"]),
    (["run", "--kernel", "x", "--net", "usr"], ["user"]),
    (["run", "--kernel", "x", "--net", "user,forward=80"], ["forward"]),
    (["run", "--kernel", "x", "--serial", "stdoi"], ["stdio"]),
    (["run", "--kernel", "x", "--disk", "d,rw"], ["ro"]),
    (["doctor", "--jsno"], ["--json"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_usage(args, words):
    line = refused(64, *args)
    for word in words:
        assert word in line, line


@pytest.fixture
def files(tmp_path):
    (tmp_path / "text").write_text("this is no kernel\n" * 100)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "elf").write_bytes(pathlib.Path("/bin/true").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name,words", [
    ("missing", ["missing", "No such file"]),
    ("text", ["text", "not a kernel"]),
    ("empty", ["empty", "not a kernel"]),
    ("folder", ["folder", "directory"]),
    ("elf", ["elf", "PVH"]),
])
def test_kernels_that_are_none(files, name, words):
    line = refused(1, "run", "--engine", "soft", "--net", "none", "--kernel", files / name)
    for word in words:
        assert word in line, line


def test_unreadable_kernel(files):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (files / "text").chmod(0)
    assert "Permission denied" in refused(1, "run", "--engine", "soft", "--kernel", files / "text")


def test_missing_initrd(files, kernels):
    line = refused(1, "run", "--engine", "soft", "--net", "none",
                   "--kernel", kernels["cloud"] / "vmlinuz", "--initrd", files / "none.img")
    assert "none.img" in line


def test_missing_disk(files, kernels):
    line = refused(1, "run", "--engine", "soft", "--net", "none",
                   "--kernel", kernels["cloud"] / "vmlinuz", "--disk", files / "none.img")
    assert "none.img" in line


@pytest.mark.parametrize("keep", [100, 600, 20000, 1000000])
def test_truncated_kernel(files, kernels, keep):
    image = (kernels["cloud"] / "vmlinuz").read_bytes()[:keep]
    (files / "cut").write_bytes(image)
    line = refused(1, "run", "--engine", "soft", "--net", "none", "--kernel", files / "cut")
    assert "truncated" in line or "not a kernel" in line


def test_image_larger_than_memory(kernels):
    line = refused(1, "run", "--engine", "soft", "--net", "none", "--memory", "8M",
                   "--kernel", kernels["cloud"] / "vmlinuz")
    assert "memory" in line and "--memory" in line


def test_more_memory_than_the_host_has(kernels):
    line = refused(1, "run", "--engine", "soft", "--memory", "1024T",
                   "--kernel", kernels["cloud"] / "vmlinuz")
    assert "host" in line


def test_engine_that_is_not_there(kernels):
    line = refused(1, "run", "--engine", "metal", "--kernel", kernels["cloud"] / "vmlinuz")
    assert "metal" in line


@pytest.mark.parametrize("args", [["--help"], ["help"], ["help", "run"], ["help", "doctor"],
                                  ["run", "--help"], ["doctor", "--help"], ["--version"]],
                         ids=" ".join)
def test_help(args):
    run = lodge(*args)
    assert (run.returncode, run.stderr) == (0, "")
    assert "odge" in run.stdout


def test_help_lists_every_option_of_the_contract():
    text = lodge("help", "run").stdout
    for option in ("engine cpus memory kernel initrd append disk net serial code-cache cpu-model no-reboot "
                   "debug-exit name verbose").split():
        assert f"--{option}" in text


def test_doctor_json(engines):
    assert {"kvm", "soft"} <= set(engines)
    for engine in engines.values():
        assert isinstance(engine["usable"], bool)
        assert engine["reason"]
        assert engine["code_cache"] == 0 or engine["code_cache"] >= 4 << 20
    assert engines["soft"]["usable"]
    assert engines["soft"]["code_cache_most"] > engines["soft"]["code_cache"] > engines["kvm"]["code_cache"] == 0


def test_doctor_text_agrees_with_json(engines):
    text = lodge("doctor").stdout
    for name in engines:
        assert name in text
    soft = engines["soft"]
    assert (f"code cache: 1/{soft['code_cache_part']} of the guest's memory, {soft['code_cache'] >> 20} MiB to "
            f"{soft['code_cache_most'] >> 20} MiB") in text


def test_output_closed_early_is_no_crash():
    run = subprocess.run(f"{LODGE} help run | true; exit ${{PIPESTATUS[0]}}", shell=True,
                         executable="/bin/bash", stderr=subprocess.PIPE, timeout=60)
    assert run.returncode in (0, 141)
