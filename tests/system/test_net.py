"""The user network through the command line, against servers on the host's loopback (the guest's 10.0.2.2)."""
import hashlib
import http.server
import os
import re
import socket
import subprocess
import threading
import time

import pytest
from conftest import LODGE, lodge

MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "failover",
           "net_failover", "virtio_net"]
SECONDS = 240
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo nameserver $dns > /etc/resolv.conf
echo LEASE $ip $router $dns
"""
UP = """
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -n -q -s /etc/lease
"""


@pytest.fixture
def command(kernels, initramfs, tmp_path):
    """The arguments that boot the cloud kernel with a script after the network is up."""
    def make(script, *options):
        lease = tmp_path / "lease"
        lease.write_text(LEASE)
        lease.chmod(0o755)
        kernel = kernels["cloud"]
        initrd = initramfs.build(UP + script, MODULES, kernel, files=[(lease, "/etc/lease")])
        return ["run", "--kernel", kernel / "vmlinux", "--initrd", initrd, "--append",
                "console=ttyS0 quiet panic=-1", "--memory", "256M", *options]
    return make


def finished(done):
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert "LODGE-TEST-END" in done.stdout, done.stdout[-3000:]
    return done.stdout.replace("\r", "")


class Server:
    """Serves `blob` by HTTP, and takes one upload on a plain TCP port."""

    def __init__(self, blob):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(blob)))
                self.end_headers()
                self.wfile.write(blob)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http_port = self.http.server_address[1]
        self.sink = socket.create_server(("127.0.0.1", 0))
        self.sink_port = self.sink.getsockname()[1]
        self.uploaded = b""
        for target in (self.http.serve_forever, self._take):
            threading.Thread(target=target, daemon=True).start()

    def _take(self):
        connection, _ = self.sink.accept()
        with connection:
            while data := connection.recv(65536):
                self.uploaded += data

    def close(self):
        self.http.shutdown()
        self.sink.close()


@pytest.mark.timeout(2 * SECONDS)
def test_lease_download_upload(command):
    blob = os.urandom((3 << 20) + 12345)
    server = Server(blob)
    try:
        out = finished(lodge(*command(f"""
ping -c 1 10.0.2.2 && echo PINGED
wget -q -O /tmp/blob http://10.0.2.2:{server.http_port}/blob
sha256sum /tmp/blob
nc 10.0.2.2 {server.sink_port} < /tmp/blob
sleep 3
"""), timeout=SECONDS))
    finally:
        server.close()
    assert "LEASE 10.0.2.15 10.0.2.2 10.0.2.3" in out
    assert "PINGED" in out
    assert hashlib.sha256(blob).hexdigest() in out
    assert hashlib.sha256(server.uploaded).hexdigest() == hashlib.sha256(blob).hexdigest()


def host_resolves():
    try:
        socket.getaddrinfo("example.com", 80, socket.AF_INET)
        return True
    except OSError:
        return False


@pytest.mark.timeout(2 * SECONDS)
def test_names_are_resolved(command):
    if not host_resolves():
        pytest.skip("the host itself cannot resolve names")
    out = finished(lodge(*command("nslookup -type=a example.com && echo RESOLVED\n"), timeout=SECONDS))
    assert re.search(r"Address:\s+\d+\.\d+\.\d+\.\d+\s", out) and "RESOLVED" in out


@pytest.mark.timeout(2 * SECONDS)
def test_a_forwarded_port_reaches_the_guest(command):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = command("echo 'hello from the guest' > /tmp/answer\necho LISTENING\nnc -l -p 7000 < /tmp/answer\n",
                        "--net", f"user,forward={port}:7000")
    with subprocess.Popen([LODGE, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as guest:
        try:
            for line in guest.stdout:
                if "LISTENING" in line:
                    break
            time.sleep(1)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.settimeout(60)
                answer = connection.recv(100)
                connection.shutdown(socket.SHUT_WR)
            assert answer == b"hello from the guest\n"
        finally:
            guest.kill()


def test_a_taken_port_is_refused(kernels):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = lodge("run", "--kernel", kernels["cloud"] / "vmlinux", "--net", f"user,forward={port}:22", timeout=60)
    assert done.returncode == 1
    assert f"TCP port {port}" in done.stderr
