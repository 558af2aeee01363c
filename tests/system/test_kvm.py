"""The kvm engine inside an emulated SVM machine (svm_rig.py): one boot, many commands, then the tests
look at what each of them said."""
import json
import pathlib
import sys

import pytest

import svm_rig
from conftest import BUILD, CACHE, LODGE

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "guest"))
import test_guests  # noqa: E402  the guests' settings and how they are judged

GUESTS = {name: test_guests.settings(name) for name in test_guests.GUESTS}
INNER_SCRIPT = """
echo "INNER UP cpus=$(grep -c ^processor /proc/cpuinfo) clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "DISK $(sha256sum /dev/vda | cut -d' ' -f1)"
dmesg | grep -E 'BUG:|WARNING:|Oops|soft lockup'
"""
INNER_MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
                 "virtio_blk"]


def guest_command(name, opts):
    append = " ".join(["kvm", "tcg"] + [word for word in opts.get("append", "").split(",") if word])
    disk = f" --disk /guests/{name}.img,format=raw" if "disk" in opts else ""
    return (f"lodge run --engine kvm --kernel /guests/{name}.elf --append '{append}' --debug-exit "
            f"--serial stdio --memory {opts.get('memory', '64M')} --cpus {opts.get('cpus', '1')} "
            f"--net none{disk}" + ("" if opts.get("reboot") else " --no-reboot"))


def kernel_command(cpus):
    return (f"lodge run --engine kvm --cpus {cpus} --memory 256M --kernel /inner/vmlinux --initrd "
            "/inner/initrd --append 'console=ttyS0 quiet' --net none --disk /inner/disk,format=raw")


@pytest.fixture(scope="module")
def rig(tmp_path_factory, initramfs):
    """{label: (status, output)} of everything that was run in the machine."""
    work = tmp_path_factory.mktemp("svm")
    machine = svm_rig.SvmRig(work, kernels=CACHE / "kernels")
    machine.add_program(LODGE, "bin/lodge")
    commands = {"doctor": "lodge doctor --json"}
    for name, opts in GUESTS.items():
        machine.add(BUILD / "guests" / f"{name}.elf", f"guests/{name}.elf")
        if "disk" in opts:
            test_guests.make_disk(work / "guest.img", opts["disk"])
            machine.add(work / "guest.img", f"guests/{name}.img")
        commands[name] = guest_command(name, opts)
    cloud = CACHE / "kernels" / "cloud"
    machine.add(cloud / "vmlinux", "inner/vmlinux")
    machine.add(initramfs.build(INNER_SCRIPT, modules=INNER_MODULES, kernel=cloud), "inner/initrd")
    test_guests.make_disk(work / "disk", "256K")
    machine.add(work / "disk", "inner/disk")
    commands["disk sum"] = "sha256sum /inner/disk"
    commands["linux 1"] = kernel_command(1)
    commands["linux 2"] = kernel_command(2)
    return dict(zip(commands, machine.run(list(commands.values()), limit=90)))


@pytest.mark.timeout(320)
def test_doctor_finds_kvm(rig):
    status, output = rig["doctor"]
    assert status == 0, output
    text = output[output.index("{"):output.rindex("}") + 1]
    kvm = [engine for engine in json.loads(text)["engines"] if engine["name"] == "kvm"][0]
    assert kvm["usable"], kvm


@pytest.mark.parametrize("name", GUESTS)
def test_guest(rig, name):
    test_guests.judge(GUESTS[name], *rig[name])


@pytest.mark.parametrize("cpus", [1, 2])
def test_unmodified_kernel(rig, cpus):
    status, output = rig[f"linux {cpus}"]
    assert status == 0, f"status {status}\n{output}"
    assert f"INNER UP cpus={cpus} clock=kvm-clock" in output, output
    assert rig["disk sum"][1].split()[0] in output, output
    for complaint in ("BUG:", "WARNING:", "Oops", "soft lockup"):
        assert complaint not in output, output
