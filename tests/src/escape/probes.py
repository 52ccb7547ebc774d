"""Tries to get out of wherever it runs. Reads a list of probes, says of each whether it got through.

One line of JSON on standard input: {"marker": ..., "probes": [[name, kind, arguments...], ...]}. A probe
reaches its goal when what comes back holds the marker, which nobody knows who has not been there.
"""

import concurrent.futures
import ctypes
import json
import os
import socket
import ssl
import struct
import sys
import urllib.request

PATIENCE = 4


def talk(connection, request):
    connection.settimeout(PATIENCE)
    connection.sendall(request)
    answer = b""
    while MARKER not in answer and len(answer) < 65536:
        part = connection.recv(4096)
        if not part:
            break
        answer += part
    return answer


def tcp(host, port, request="GET / HTTP/1.0\r\n\r\n"):
    """A connection to a name or an address, in whatever spelling."""
    with socket.create_connection((host, port), PATIENCE) as connection:
        return talk(connection, request.encode())


def tcp6(host, port):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect((host, port))
        return talk(connection, b"GET / HTTP/1.0\r\n\r\n")


def http(host, port, request):
    return tcp(host, port, request.replace("\n", "\r\n"))


def follow(url):
    """As a program does that follows redirects."""
    return urllib.request.urlopen(url, timeout=PATIENCE).read(65536)


def client_hello(server_name):
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def sni(host, port, server_name):
    with socket.create_connection((host, port), PATIENCE) as connection:
        return talk(connection, client_hello(server_name))


def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.sendto(b"hello", (host, port))
        return sender.recv(4096)


def dns(server, port, name):
    """A question for a text record: what a tunnel through resolvers is made of."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 16, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.sendto(question, (server, port))
        return sender.recv(4096)


def dns_tcp(server, port, name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 16, 1)
    with socket.create_connection((server, port), PATIENCE) as connection:
        return talk(connection, struct.pack(">H", len(question)) + question)


def icmp(host):
    """An echo request in a raw socket. An answer is as good as the marker."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(PATIENCE)
        echo = struct.pack(">BBHHH", 8, 0, 0, 7, 7)
        total = sum(struct.unpack(">4H", echo))
        checksum = ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF
        raw.sendto(struct.pack(">BBHHH", 8, 0, checksum, 7, 7), (host, 1))
        while True:
            packet, sender = raw.recvfrom(4096)
            if sender[0] == host and packet[20] == 0:
                return MARKER


def packet():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)):
        return MARKER


def namespace():
    """Another network namespace, to set up what one likes in it."""
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(0x40000000) == 0 else 1)
    return MARKER if os.waitpid(child, 0)[1] == 0 else b""


def link():
    """A request to the kernel for another interface."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(PATIENCE)
        name = b"escape0\0"
        kind = struct.pack("HH", 4 + 7, 1) + b"bridge\0\0"
        attributes = struct.pack("HH", 4 + len(name), 3) + name
        attributes += struct.pack("HH", 4 + len(kind), 18) + kind
        body = struct.pack("BBHiII", 0, 0, 0, 0, 0, 0) + attributes
        netlink.sendto(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body, (0, 0))
        return MARKER if struct.unpack_from("i", netlink.recv(4096), 16)[0] == 0 else b""


def connect(host, port, target, request):
    """Through a proxy that is asked to connect somewhere."""
    with socket.create_connection((host, port), PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(1)
            if not part:
                return b""
            head += part
        if b" 200 " not in head.split(b"\r\n")[0]:
            return head
        if not target.endswith(":443"):
            return talk(connection, request.encode())
        context = ssl._create_unverified_context()
        with context.wrap_socket(connection, server_hostname=target.split(":")[0]) as tls:
            return talk(tls, request.replace("\n", "\r\n").encode())


def attempt(probe):
    name, kind, *arguments = probe
    try:
        answer = KINDS[kind](*arguments)
        return name, MARKER in answer, answer[:80].decode("latin-1")
    except Exception as error:
        return name, False, f"{type(error).__name__}: {error}"


KINDS = {
    function.__name__: function
    for function in (
        tcp, tcp6, http, follow, sni, udp, dns, dns_tcp, icmp, packet, namespace, link, connect,
    )
}

plan = json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.readline())
MARKER = plan["marker"].encode()
# Forks go first, while there are no threads.
early = [attempt(probe) for probe in plan["probes"] if probe[1] == "namespace"]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    rest = pool.map(attempt, [probe for probe in plan["probes"] if probe[1] != "namespace"])
    print(json.dumps(early + list(rest)))
