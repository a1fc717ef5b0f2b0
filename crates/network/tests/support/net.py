"""What tests do inside network namespaces: a guest's cable, servers and clients. Standard library only."""

import fcntl
import os
import select
import socket
import struct
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000


def open_tap(name, flags):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return tap


def cable_tap(descriptor):
    """Joins an inherited TAP of the host to eth0 here, both with a virtio header before each frame."""
    ends = [int(descriptor), open_tap("eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)]
    print("ready", flush=True)
    while True:
        for end in select.select(ends, [], [])[0]:
            try:
                frame = os.read(end, 70000)
            except OSError:
                sys.exit(0)  # the TAP was removed
            try:
                os.write(ends[1 - ends.index(end)], frame)
            except OSError:
                pass


def cable_stream(path):
    """Joins eth0 here to a Unix stream socket that carries frames with a 32-bit length before each."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    tap = open_tap("eth0", IFF_TAP | IFF_NO_PI)
    print("ready", flush=True)
    held = b""
    while True:
        for end in select.select([peer, tap], [], [])[0]:
            if end is tap:
                frame = os.read(tap, 70000)
                peer.sendall(struct.pack("!I", len(frame)) + frame)
                continue
            data = peer.recv(262144)
            if not data:
                sys.exit(0)
            held += data
            while len(held) >= 4 and len(held) >= 4 + struct.unpack("!I", held[:4])[0]:
                length = struct.unpack("!I", held[:4])[0]
                try:
                    os.write(tap, held[4 : 4 + length])
                except OSError:
                    pass
                held = held[4 + length :]


def serve(address, port, text):
    """Answers each TCP connection and each datagram with a text and the peer's address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    for one in (tcp, udp):
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, int(port)))
    tcp.listen(64)
    print("ready", flush=True)
    while True:
        for one in select.select([tcp, udp], [], [])[0]:
            if one is udp:
                _, peer = udp.recvfrom(2000)
                udp.sendto(f"{text} {peer[0]}".encode(), peer)
            else:
                connection, peer = tcp.accept()
                connection.sendall(f"{text} {peer[0]}".encode())
                connection.close()


def ask(kind, address, port, seconds="4"):
    """Prints what a server says, or `nothing`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    stream = kind == "tcp"
    one = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    one.settimeout(float(seconds))
    try:
        one.connect((address, int(port)))
        if not stream:
            one.send(b"?")
        print(one.recv(2000).decode() or "nothing")
    except OSError as error:
        print("nothing:", error)


def ask_often(address, port, times):
    """Connects again and again to a server that speaks first; prints how many answers came before one did not."""
    for answers in range(int(times)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.settimeout(10)
            try:
                one.connect((address, int(port)))
                text = one.recv(2000)
            except OSError as error:
                print(answers, "answers, then:", error)
                return
            if not text:
                print(answers, "answers, then nothing")
                return
    print(times, "answers")


def resolve(name, server, kind="1", over="udp"):
    """Prints the answer's code and the addresses in it."""
    question = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".") if p) + b"\0"
    query = struct.pack("!6H", 4711, 0x100, 1, 0, 0, 0) + question + struct.pack("!2H", int(kind), 1)
    try:
        if over == "udp":
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.settimeout(3)
            one.connect((server, 53))
            one.send(query)
            answer = one.recv(4096)
        else:
            one = socket.create_connection((server, 53), 3)
            one.sendall(struct.pack("!H", len(query)) + query)
            answer = one.recv(4096)[2:]
    except OSError as error:
        print("nothing:", error)
        return
    ident, flags, _, answers = struct.unpack("!4H", answer[:8])
    addresses = [socket.inet_ntoa(answer[len(query) + 12 :][:4])] if answers else []
    print(ident == 4711, flags & 15, *addresses)


def upstream(address):
    """A name server that says 198.51.100.9 to everything."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((address, 53))
    print("ready", flush=True)
    while True:
        query, peer = one.recvfrom(4096)
        end = 12
        while query[end]:
            end += query[end] + 1
        question = query[12 : end + 5]
        record = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 4) + socket.inet_aton("198.51.100.9")
        one.sendto(query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + question + record, peer)


def loopback_frames(path, mac, source, gateway_mac, targets):
    """A hostile guest: sends TCP SYNs to loopback addresses straight onto the wire; prints who answers."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)

    def checksum(data):
        data += b"\0" * (len(data) % 2)
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        total = (total & 0xFFFF) + (total >> 16)
        return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF

    raw = lambda text: bytes.fromhex(text.replace(":", ""))
    answers = set()
    for n, target in enumerate(targets.split(",")):
        address, port = target.rsplit(":", 1)
        ends = socket.inet_aton(source) + socket.inet_aton(address)
        tcp = struct.pack("!2H2I2H2H", 40000 + n, int(port), 1, 0, 0x5002, 65535, 0, 0)
        tcp = tcp[:16] + struct.pack("!H", checksum(ends + struct.pack("!2H", 6, len(tcp)) + tcp)) + tcp[18:]
        ip = struct.pack("!2B3H2BH", 0x45, 0, 20 + len(tcp), n, 0, 64, 6, 0) + ends
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        frame = raw(gateway_mac) + raw(mac) + b"\x08\x00" + ip + tcp
        peer.sendall(struct.pack("!I", len(frame)) + frame)
    peer.settimeout(2)
    held = b""
    try:
        while data := peer.recv(262144):
            held += data
            while len(held) >= 4 and len(held) >= 4 + struct.unpack("!I", held[:4])[0]:
                length = struct.unpack("!I", held[:4])[0]
                frame, held = held[4 : 4 + length], held[4 + length :]
                if frame[12:14] == b"\x08\x00" and frame[23] == 6 and frame[47] & 0x12 == 0x12:
                    port = struct.unpack("!H", frame[34:36])[0]
                    answers.add(f"{socket.inet_ntoa(frame[26:30])}:{port}")
    except OSError:
        pass
    print("answers:", *sorted(answers))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
