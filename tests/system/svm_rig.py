"""An L1 machine with real SVM, as QEMU emulates it: where the kvm engine is tested without hardware.

A Debian cloud kernel boots under QEMU's TCG from an initramfs with busybox, the KVM modules, the lodge
program with its libraries, and what the test adds; it runs the given commands one after the other
and powers off.

    rig = SvmRig(work_directory)
    rig.add("build/guests/hello.elf", "guests/hello.elf")
    results = rig.run(["lodge doctor --json", ...])      # [(status, output), ...]

Needs: qemu-system-x86, busybox-static, cpio, and tools/guest-kernels (network on the first run).
"""
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LODGE_BUILD", ROOT / "build"))
KERNELS = BUILD / "guest" / "kernels"
# In the order they are loaded; inside the modules directory.
MODULES = ["kernel/virt/lib/irqbypass.ko", "kernel/arch/x86/kvm/kvm.ko", "kernel/arch/x86/kvm/kvm-amd.ko"]
TIME_OVER = 124  # status of a command that ran out of time

INIT = r"""#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /tmp /root
export PATH=/bin HOME=/root LD_LIBRARY_PATH=/lib64
ip link set lo up
for m in /modules/*.ko; do insmod $m || echo "@@RIG cannot load $m"; done
i=0
while [ -e /commands/$i ]; do
    echo "@@RIG begin $i"
    timeout $(cat /commands/$i.limit) sh /commands/$i </dev/null 2>&1
    status=$?
    echo
    echo "@@RIG end $i $status"
    i=$((i + 1))
done
echo "@@RIG done"
poweroff -f
"""


def libraries(program):
    """What the dynamic linker would load for it, itself included."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [pathlib.Path(p) for p in re.findall(r"(/\S+) \(0x", text)]


class SvmRig:
    def __init__(self, work, kernels=KERNELS, cpus=1, memory="1024M"):
        self.work = pathlib.Path(work)
        self.root = self.work / "root"
        self.kernels = pathlib.Path(kernels)
        self.cpus, self.memory = cpus, memory
        self.log = ""
        self._prepare()

    def add(self, source, target, mode=0o755):
        path = self.root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)

    def add_program(self, source, target):
        self.add(source, target)
        for library in libraries(source):
            folder = "lib64" if "ld-linux" in library.name else "lib"
            self.add(library.resolve(), f"{folder}/{library.name}")

    def _prepare(self):
        if not (self.kernels / "cloud" / "complete").exists():
            subprocess.run([ROOT / "tools/guest-kernels", self.kernels, "cloud"], check=True)
        for folder in ["bin", "lib", "lib64", "proc", "sys", "dev", "commands", "modules"]:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.add("/bin/busybox", "bin/busybox")
        (self.root / "bin/sh").symlink_to("busybox")
        for number, module in enumerate(MODULES):
            self.add(self.kernels / "cloud/modules" / module, f"modules/{number}.ko")
        (self.root / "init").write_text(INIT)
        (self.root / "init").chmod(0o755)

    def _write_commands(self, commands, limit):
        for number, command in enumerate(commands):
            (self.root / "commands" / str(number)).write_text(command + "\n")
            (self.root / "commands" / f"{number}.limit").write_text(f"{limit}\n")

    def _pack(self):
        image = self.work / "initramfs.cpio"
        with open(image, "wb") as out:
            names = subprocess.run(["find", "."], cwd=self.root, capture_output=True, check=True).stdout
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=self.root, input=names,
                           stdout=out, check=True)
        return image

    def run(self, commands, limit=60, timeout=280):
        """limit: seconds for each command; timeout: for all. Commands not reached have status None."""
        self._write_commands(commands, limit)
        log = self.work / "console.log"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max,-xsave", "-smp",
                   str(self.cpus), "-m", self.memory, "-nodefaults", "-display", "none", "-no-reboot",
                   "-serial", f"file:{log}", "-kernel", str(self.kernels / "cloud/vmlinux"), "-initrd",
                   str(self._pack()), "-append", "console=ttyS0 quiet panic=-1 tsc=reliable"]
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            pass  # what was reached is in the log
        self.log = log.read_text(errors="replace").replace("\r", "")
        return [self._result(number) for number in range(len(commands))]

    def _result(self, number):
        found = re.search(rf"@@RIG begin {number}\n(.*?)(?:\n?@@RIG end {number} (\d+)|\Z)", self.log, re.S)
        if not found:
            return None, self.log[-2000:]
        return (int(found.group(2)) if found.group(2) else None), found.group(1)
