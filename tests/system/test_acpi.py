"""The ACPI tables as the ACPI project's own compiler sees them."""
import shutil
import subprocess

import pytest

from conftest import lodge


@pytest.fixture(params=[("1", "64M"), ("4", "512M"), ("64", "8G")], ids=lambda p: "-".join(p))
def tables(request, tmp_path):
    cpus, memory = request.param
    folder = tmp_path / "tables"
    run = lodge("run", "--dump-acpi", folder, "--cpus", cpus, "--memory", memory)
    assert run.returncode == 0, run.stderr
    return int(cpus), folder


def iasl(*args, cwd):
    if not shutil.which("iasl"):
        pytest.skip("iasl is missing (package acpica-tools)")
    run = subprocess.run(["iasl", *args], cwd=cwd, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, timeout=60)
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_all_tables_are_there(tables):
    _, folder = tables
    names = {path.name for path in folder.iterdir()}
    assert names == {"dsdt.dat", "facs.dat", "facp.dat", "apic.dat", "mcfg.dat", "rsdt.dat",
                     "xsdt.dat"}


@pytest.mark.parametrize("name", ["dsdt", "facp", "apic", "mcfg", "facs"])
def test_disassembles_and_compiles_again(tables, name):
    _, folder = tables
    out = iasl("-d", f"{name}.dat", cwd=folder)
    assert "Incorrect checksum" not in out and "Invalid" not in out, out
    out = iasl("-p", "again", f"{name}.dsl", cwd=folder)
    if name != "facs":
        assert "0 Errors, 0 Warnings" in out, out


def test_the_dsdt_names_every_processor(tables):
    cpus, folder = tables
    iasl("-d", "dsdt.dat", cwd=folder)
    text = (folder / "dsdt.dsl").read_text()
    assert text.count('"ACPI0007"') == cpus
    assert "_S5" in text and "_PRT" in text


def test_a_place_that_cannot_be_written_is_named():
    run = lodge("run", "--dump-acpi", "/proc/none")
    assert run.returncode == 1
    assert "/proc/none" in run.stderr
