#!/usr/bin/env python3
"""Follows a log and a health status until the server ends, and says how the calls ended.

Usage: hold.py ADDRESS of a server with the fake hypervisor and the image busybox.
"""

import sys

import grpc
from reflected import Server

server = Server(sys.argv[1])
made = server.call("CreateVM", {"user_id": "held", "image": "busybox", "limits": {"memory_mb": 512}})
watched = server.invoke("grpc.health.v1.Health/Watch", {"service": ""})
assert next(watched).status == 1
followed = server.invoke("GetLogs", {"vm_id": made.vm_id, "follow": True})
running = server.invoke("ExecuteCommandStream", {"vm_id": made.vm_id, "command": ["count"]})
next(running)
print("holding", flush=True)
for call in (running, followed):
    try:
        for _ in call:
            pass
        print("ended")
    except grpc.RpcError as error:
        print(error.code().name, error.details())
try:
    print("health", [answer.status for answer in watched])
except grpc.RpcError as error:
    print("health", error.code().name)
