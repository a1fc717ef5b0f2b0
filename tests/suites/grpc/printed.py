#!/usr/bin/env python3
"""The commands of `printed-commands`, as they are printed in clients' documentation, carried out by a client that knows
only what reflection says. A PASS or FAIL for each, in their order: each stands on the one before.

Usage: printed.py ADDRESS (--real | --fake): whether there are guests that run programs.
"""

import json
import pathlib
import shlex
import sys

import results
from google.protobuf import json_format
from reflected import Server


def commands():
    text = (pathlib.Path(__file__).parent / "printed-commands").read_text()
    words = shlex.split(text, comments=True)
    starts = [at for at, word in enumerate(words) if word == "grpcurl"] + [len(words)]
    for start, end in zip(starts, starts[1:]):
        rest = words[start + 1 : end]
        assert rest.pop(0) == "-plaintext", rest
        data = "{}"
        if rest[0] == "-d":
            data, rest = rest[1], rest[2:]
        address, method = rest
        assert address == "localhost:50064", address
        yield method, json.loads(data)


def must(answer, method, real):
    name = method.rpartition("/")[2]
    if name == "Check":
        assert answer["status"] == "SERVING", answer
    elif name == "CreateVM":
        assert (answer["vm_name"], answer["user_id"]) == ("user123-env", "user123"), answer
        assert answer["status"] == "running" and answer["vm_id"], answer
        assert int(answer["created_at"]) > 1_600_000_000, answer
    elif name == "ListVMs":
        assert answer["total"] == 1 and answer["vms"][0]["vm_name"] == "user123-env", answer
        assert answer["vms"][0]["image"] == "ubuntu:22.04", answer
    elif name == "ExecuteCommand" and real:
        assert answer["exit_code"] == 0 and answer["stdout"].startswith("Python 3."), answer
    elif name == "ExecuteCommand":
        assert answer["exit_code"] == 127 and "python3" in answer["stderr"], answer
    elif name == "GetVMStatus":
        assert answer["status"] == "running" and int(answer["started_at"]) > 0, answer
        assert int(answer["resource_usage"]["memory_total_mb"]) == 4096, answer
        assert int(answer["resource_usage"]["disk_total_gb"]) == 20, answer
    elif name in ("StopVM", "DeleteVM"):
        assert answer["status"] == "stopped", answer
    else:
        raise AssertionError(f"nobody says what {method} must answer")


def carry_out(server, method, request, real):
    message = server.call(method, request, timeout=120)
    answer = json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    must(answer, method, real)


def main():
    server, guests = Server(sys.argv[1]), sys.argv[2].strip("-")
    passed = [
        results.passes(f"printed-{method.rpartition('/')[2]}-{guests}", carry_out, server, method, request, guests == "real")
        for method, request in commands()
    ]
    assert len(passed) == 7, f"{len(passed)} commands"
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
