"""A machine's life through the command alone: console, signals, reset, power-off, exit codes."""
import fcntl
import os
import pathlib
import pty
import signal
import socket
import subprocess
import termios
import time

import pytest

from conftest import LODGE

HERE = pathlib.Path(__file__).parent
TIMEOUT = 60


@pytest.fixture(scope="session")
def guest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    elf, flat = folder / "echo.elf", folder / "echo.bin"
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none", "-Wl,-e0x100000",
                    "-o", elf, HERE / "echo_guest.S"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, flat], check=True)
    return flat


def command(guest, *args):
    return [LODGE, "run", "--engine", "soft", "--memory", "8M", "--net", "none", "--kernel", guest,
            *args]


STARTED = []


@pytest.fixture(autouse=True)
def leave_no_machine_behind():
    yield
    while STARTED:
        machine = STARTED.pop()
        if machine.poll() is None:
            machine.kill()
            machine.wait()


def start(guest, *args, **kwargs):
    kwargs.setdefault("stdin", subprocess.PIPE)
    kwargs.setdefault("stdout", subprocess.PIPE)
    machine = subprocess.Popen(command(guest, *args), stderr=subprocess.PIPE, **kwargs)
    STARTED.append(machine)
    return machine


def read_until(fd, word):
    seen = b""
    deadline = time.monotonic() + TIMEOUT
    while word not in seen:
        assert time.monotonic() < deadline, seen
        chunk = os.read(fd, 4096)
        assert chunk, seen
        seen += chunk
    return seen


def finish(machine, text=None):
    out, err = machine.communicate(text, timeout=TIMEOUT)
    return machine.returncode, out or b"", err.decode()


def test_power_off(guest):
    assert finish(start(guest), b"hello q") == (0, b"READY\r\nhello ", "")


def test_end_of_input_does_not_end_the_machine(guest):
    machine = start(guest, stdin=subprocess.DEVNULL)
    read_until(machine.stdout.fileno(), b"READY")
    time.sleep(0.5)
    assert machine.poll() is None
    machine.send_signal(signal.SIGTERM)
    code, out, _ = finish(machine)
    assert (code, b"BUTTON" in out) == (0, True)


def test_input_from_a_file(guest, tmp_path):
    (tmp_path / "in").write_bytes(b"hello " * 100 + b"q")
    with open(tmp_path / "in", "rb") as file:
        code, out, _ = finish(start(guest, stdin=file))
    assert code == 0 and out.count(b"hello ") == 100


def test_output_is_not_lost_at_the_end(guest, tmp_path):
    text = b"0123456789" * 4000
    with open(tmp_path / "out", "wb") as file:
        machine = start(guest, stdout=file)
        code, _, _ = finish(machine, text + b"q")
    assert code == 0
    assert (tmp_path / "out").read_bytes() == b"READY\r\n" + text


def test_a_reader_that_goes_away_does_no_harm(guest):
    machine = start(guest)
    read_until(machine.stdout.fileno(), b"READY")
    machine.stdout.close()
    machine.stdin.write(b"abcdef")
    machine.stdin.flush()
    time.sleep(0.3)
    machine.stdin.write(b"q")
    machine.stdin.flush()
    assert machine.wait(TIMEOUT) == 0


@pytest.mark.parametrize("key,reason", [(b"r", "reset"), (b"t", "triple fault")])
def test_reset_starts_again(guest, key, reason):
    code, out, err = finish(start(guest), b"a" + key + b"bq")
    assert (code, out.count(b"READY")) == (0, 2)
    assert reason in err


def test_input_survives_many_resets(guest):
    machine = start(guest)
    for _ in range(5):
        read_until(machine.stdout.fileno(), b"READY")
        machine.stdin.write(b"t")
        machine.stdin.flush()
    read_until(machine.stdout.fileno(), b"READY")
    assert finish(machine, b"q")[0] == 0


@pytest.mark.parametrize("key", [b"r", b"t"])
def test_no_reboot(guest, key):
    code, out, err = finish(start(guest, "--no-reboot"), key)
    assert (code, out.count(b"READY")) == (0, 1)
    assert "reset" in err


def test_debug_exit(guest):
    assert finish(start(guest, "--debug-exit"), b"x")[0] == 11


def test_without_debug_exit_the_port_is_nothing(guest):
    code, out, _ = finish(start(guest), b"xyzq")
    assert (code, out) == (0, b"READY\r\nyz")


def test_second_signal_stops_at_once(guest):
    machine = start(guest, "--serial", "none")
    time.sleep(1)
    machine.send_signal(signal.SIGSTOP)  # so that both are there before the guest can power off
    machine.send_signal(signal.SIGTERM)
    machine.send_signal(signal.SIGINT)
    machine.send_signal(signal.SIGCONT)
    code, _, err = finish(machine)
    assert code in (0, 1)
    assert "power button" in err


def test_a_signal_ends_a_guest_that_halted_for_good(guest):
    machine = start(guest)
    read_until(machine.stdout.fileno(), b"READY")
    machine.stdin.write(b"k")
    machine.stdin.flush()
    read_until(machine.stdout.fileno(), b"HALT")
    machine.send_signal(signal.SIGTERM)
    code, _, err = finish(machine)
    assert code == 1
    assert "does not listen" in err and "did not power itself off" in err


def test_serial_to_a_file(guest, tmp_path):
    machine = start(guest, "--serial", f"file:{tmp_path}/log")
    deadline = time.monotonic() + TIMEOUT
    while b"READY" not in (tmp_path / "log").read_bytes() if (tmp_path / "log").exists() else True:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    machine.send_signal(signal.SIGTERM)
    assert finish(machine)[0] == 0
    assert b"BUTTON" in (tmp_path / "log").read_bytes()


def test_serial_to_a_socket_that_comes_back(guest, tmp_path):
    path = tmp_path / "serial"
    machine = start(guest, "--serial", f"unix:{path}")
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < deadline and machine.poll() is None
        time.sleep(0.05)
    for word in (b"one", b"seven", b"nine"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(path))
            # The guest may not have started yet, and a new client may be a moment late.
            client.sendall(word)
            seen = b""
            while word not in seen:
                chunk = client.recv(100)
                assert chunk
                seen += chunk
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"q")
        assert finish(machine)[0] == 0
    assert not path.exists()


def test_serial_path_that_cannot_be(guest, tmp_path):
    code, _, err = finish(start(guest, "--serial", f"file:{tmp_path}/no/such/log"))
    assert code == 1 and "no/such/log" in err


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def on_terminal(guest, slave, *args):
    """With the pty as its controlling terminal, as a shell would start it."""
    return start(guest, *args, stdin=slave, stdout=slave, start_new_session=True,
                 preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))


def test_terminal_is_raw_and_comes_back(guest, terminal):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    machine = on_terminal(guest, slave)
    read_until(master, b"READY")
    assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    os.write(master, b"\x03abc")  # an interrupt key is the guest's
    read_until(master, b"\x03abc")
    os.write(master, b"\x1d")
    assert machine.wait(TIMEOUT) == 0
    assert termios.tcgetattr(slave) == before
    machine.stderr.close()


def test_terminal_comes_back_after_a_crash(guest, terminal):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    machine = on_terminal(guest, slave)
    read_until(master, b"READY")
    machine.send_signal(signal.SIGABRT)
    assert machine.wait(TIMEOUT) == -signal.SIGABRT
    assert termios.tcgetattr(slave) == before
    machine.stderr.close()
