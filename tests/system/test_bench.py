"""The benchmark's own programs: every workload runs here and prints a sane line; the report copes with what peers do.
No times are judged."""
import pathlib
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import peers  # noqa: E402
import report  # noqa: E402

PROGRAM = peers.WORK / "bench"


@pytest.fixture(scope="module")
def program():
    subprocess.run(["make", "-s", "-C", ROOT, "build/bench/bench"], check=True)
    return PROGRAM


def output(*command):
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def listed(program):
    return [line.split() for line in output(program, "--list")]


def test_every_workload_prints_a_sane_line(program):
    names = [name for name, _, _ in listed(program)]
    assert len(names) == len(set(names))
    lines = output(program, "--ms", 3, *names)
    assert [line.split()[0] for line in lines] == names
    for line in lines:
        _, first, second = line.split(maxsplit=2)
        assert first == "skipped" or (float(first) > 0 and int(second) > 0), line


def test_every_class_has_a_row_of_goals(program):
    assert {class_ for _, class_, _ in listed(program)} <= set(report.CLASSES)


def test_a_command_is_timed(program):
    line, = output(program, "--ms", 3, "--command", "nothing", "/bin/true")
    assert line.split()[0] == "nothing" and float(line.split()[1]) > 0


def test_a_failing_command_and_an_unknown_name_fail(program):
    for arguments in (["--command", "no", "/bin/false"], ["frobnicate"]):
        run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
        assert run.returncode != 0 and " failed " in run.stdout, run.stdout


def stand_in(tmp_path, monkeypatch, script):
    """A peer that is a shell script."""
    path = tmp_path / "peer"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    monkeypatch.setattr(peers.Machine, "command", lambda self, peer: [str(path), self.append])
    monkeypatch.setattr(peers, "lines_of", lambda *a, lines=peers.lines_of, **k: lines(*a, silence=1, **k))


def test_a_peer_that_hangs_leaves_the_other_workloads(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, """echo BENCH-START 1000
case "$1" in
*bench.run=a,b,c*) echo a 5.00 10; exec sleep 60 ;;
*bench.run=c*) echo c 7.00 10; echo BENCH-END 2000 ;;
esac
""")
    values = peers.measure("lodge", ["a", "b", "c"], 1, peers.Machine()).values
    assert values["a"] == 5 and values["c"] == 7
    assert values["b"].startswith("failed")


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "echo nonsense; echo a failed of boredom"])
def test_a_peer_that_fails_is_a_cell(tmp_path, monkeypatch, script):
    stand_in(tmp_path, monkeypatch, script)
    values = peers.measure("tcg-max", ["a", "b"], 1, peers.Machine()).values
    assert all(value.startswith("failed") for value in values.values()) and set(values) == {"a", "b"}


def test_a_peer_that_is_not_there_is_a_cell(monkeypatch):
    monkeypatch.setattr(peers.Machine, "command", lambda self, peer: ["/nowhere/peer", self.append])
    assert peers.measure("lodge", ["a"], 1, peers.Machine()).values["a"].startswith("failed")


def test_ratios_of_medians_and_the_better_peer():
    row = report.Row("x", "integer", {"native": [10.0, 11.0, 30.0], "lodge": [22.0, 20.0, 24.0],
                                      "tcg-max": [99.0, 99.0, 99.0], "tcg-nehalem": [66.0, "failed", 66.0]})
    assert (row.native, row.lodge, row.tcg, row.tcg_peer) == (11, 22, 66, "tcg-nehalem")
    assert (row.slowdown, row.speedup) == (2, 3)
    assert row.cells()[-1] == "77 %"  # 2.2, 1.82, 0.8


def test_a_report_with_holes(tmp_path, monkeypatch):
    results = {"x": ("integer", {"native": [10.0], "lodge": ["failed: no answer"], "tcg-max": ["skipped: no AVX2"]}),
               "host-memory": ("footprint", {"lodge": [50.0], "tcg-max": [100.0]})}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "DOCS", page)
    report.write_docs(report.text(results, ["facts"]))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "failed" in text and "skipped" in text and "50 MiB" in text


def test_an_initial_ram_disk_is_readable(tmp_path):
    archive = peers.cpio({"dir": (0o040755, b""), "dir/file": (0o100644, b"hello")})
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert pathlib.Path(tmp_path / "dir" / "file").read_bytes() == b"hello"
