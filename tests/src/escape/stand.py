"""Answers whoever connects with the marker: <marker> <port> [<address to have on loopback>]."""

import fcntl
import socket
import struct
import sys

marker, port = sys.argv[1].encode(), int(sys.argv[2])
for address in sys.argv[3:]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = struct.pack("16sH2x4s8x", b"lo:1", socket.AF_INET, socket.inet_aton(address))
        fcntl.ioctl(any_socket, 0x8916, name)  # SIOCSIFADDR
listener = socket.create_server(("0.0.0.0", port))
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + marker)
