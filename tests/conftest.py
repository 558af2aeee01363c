"""What all tests share: the program, guest kernels, a small initial RAM disk."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILD = ROOT / "build"
LODGE = pathlib.Path(os.environ.get("LODGE", BUILD / "lodge"))
CACHE = BUILD / "guest"


def lodge(*args, timeout=120, **kwargs):
    """Runs the command and returns the finished process; output as text."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([LODGE, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, errors="replace", timeout=timeout, **kwargs)


@pytest.fixture(scope="session")
def engines():
    """What `lodge doctor` found: name -> {usable, reason}."""
    run = lodge("doctor", "--json")
    return {engine["name"]: engine for engine in json.loads(run.stdout)["engines"]}


@pytest.fixture(scope="session")
def kernels():
    """Debian's kernels: name -> folder with vmlinuz, vmlinux (ELF) and modules."""
    folder = CACHE / "kernels"
    subprocess.run([ROOT / "tools" / "guest-kernels", folder], check=True)
    return {name: folder / name for name in ("cloud", "generic")}


class Initramfs:
    """Makes a busybox initial RAM disk: /init is the script given, which ends by powering off."""

    HEAD = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
"""
    TAIL = """
echo LODGE-TEST-END
poweroff -f
"""

    def __init__(self, folder):
        self.folder = folder
        self.made = 0

    def build(self, script, modules=(), kernel=None, files=()):
        """modules: names in dependency order, loaded from `kernel`'s modules before the script.
        files: (host path, guest path) pairs."""
        self.made += 1
        tree = self.folder / f"tree{self.made}"
        for name in ("bin", "proc", "sys", "dev", "tmp", "mnt", "etc", "lib/modules"):
            (tree / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin" / "busybox")
        subprocess.run([tree / "bin" / "busybox", "--install", "-s", tree / "bin"], check=True)
        for link in (tree / "bin").iterdir():
            if link.is_symlink():
                link.unlink()
                link.symlink_to("busybox")
        text = self.HEAD
        for name in modules:
            found = list((kernel / "modules").rglob(f"{name}.ko"))
            assert found, f"{kernel} has no module {name}"
            shutil.copy(found[0], tree / "lib" / "modules")
            text += f"insmod /lib/modules/{name}.ko\n"
        for source, target in files:
            target = tree / target.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        init = tree / "init"
        init.write_text(text + script + self.TAIL)
        init.chmod(0o755)
        out = self.folder / f"initrd{self.made}"
        subprocess.run(f"find . | cpio -o -H newc --quiet > {out}", shell=True, cwd=tree, check=True)
        shutil.rmtree(tree)
        return out


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory):
    return Initramfs(tmp_path_factory.mktemp("initramfs"))
