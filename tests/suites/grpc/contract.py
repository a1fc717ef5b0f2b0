#!/usr/bin/env python3
"""container.ContainerService as its clients meet it, one PASS or FAIL a line. The client is made of what reflection says.

Usage: contract.py ADDRESS URL for a server with the fake hypervisor and the image busybox; with --secret SECRET after it
for one with a JWT_SECRET.
"""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
import urllib.request

import grpc
import results
import shape
from grpc import StatusCode
from grpc_reflection.v1alpha import reflection_pb2
from reflected import LARGEST, SERVICE, Server

# The methods that are about one VM, with what they need besides it.
OF_A_VM = {
    "StartVM": {},
    "StopVM": {},
    "DeleteVM": {},
    "GetVMStatus": {},
    "ExecuteCommand": {"command": ["echo", "x"]},
    "ExecuteCommandStream": {"command": ["echo", "x"]},
    "GetResourceUsage": {},
    "UpdateResourceLimits": {"limits": {"cpu_count": 1}},
    "GetLogs": {},
    "ReadFile": {"file_path": "/etc/hostname"},
    "WriteFile": {"file_path": "/tmp/x"},
    "DeleteFile": {"file_path": "/tmp/x"},
    "ListFiles": {},
    "CreateDirectory": {"directory_path": "/tmp/x"},
}


def rest(url, method="GET", body=None, token=None):
    request = urllib.request.Request(url, method=method, data=json.dumps(body).encode() if body is not None else None)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
        return json.loads(text) if text else None


class Vm:
    """A VM for one test."""

    def __init__(self, server, user="tester", **fields):
        self.server = server
        request = {"user_id": user, "image": "busybox", "limits": {"memory_mb": 512, "disk_size_gb": 5}, **fields}
        self.made = server.call("CreateVM", request)
        self.id = self.made.vm_id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.server.call("DeleteVM", {"vm_id": self.id, "force": True})
        except grpc.RpcError as error:
            assert error.code() == StatusCode.NOT_FOUND, error


# --- health, reflection, shape -------------------------------------------------------------------------------


def health_answers_to_its_names(server, url):
    for name in ("", "container-grpc", SERVICE):
        assert server.call("grpc.health.v1.Health/Check", {"service": name}).status == 1, name
    server.refused(StatusCode.NOT_FOUND, "grpc.health.v1.Health/Check", {"service": "nothing"})
    watched = server.invoke("grpc.health.v1.Health/Watch", {"service": "container-grpc"})
    assert next(watched).status == 1
    watched.cancel()


def reflection_is_there_in_both_versions(server, url):
    for version in ("v1", "v1alpha"):
        names = server.reflect(version, reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in names.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names, (version, names)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.CreateVM")
        files = server.reflect(version, request).file_descriptor_response.file_descriptor_proto
        assert files and b"CreateVMRequest" in files[0], version
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing")
        try:
            answer = server.reflect(version, request)
            assert answer.error_response.error_code == StatusCode.NOT_FOUND.value[0], answer
        except grpc.RpcError as error:
            assert error.code() == StatusCode.NOT_FOUND, error


def the_wire_is_what_clients_were_built_with(server, url):
    shape.must_be_as_it_was(server)


# --- creating ------------------------------------------------------------------------------------------------


def what_is_left_out_has_defaults(server, url):
    made = server.call("CreateVM", {"user_id": "alice", "image": "busybox"})
    try:
        assert (made.user_id, made.vm_name, made.status) == ("alice", "alice-env", "running"), made
        assert abs(made.created_at - time.time()) < 60, made
        shown = rest(f"{url}/instances/alice-env")
        assert (shown["id"], shown["vcpus"], shown["memory_mb"]) == (made.vm_id, 2, 4096), shown
        assert shown["overlay_size"] == "20GB" and shown["memory_max_mb"] == 4096, shown
        assert shown["tags"] == {"user_id": "alice"}, shown
    finally:
        server.call("DeleteVM", {"vm_id": "alice-env", "force": True})


def what_is_asked_for_is_made(server, url):
    limits = {"cpu_count": 3, "memory_mb": 768, "disk_size_gb": 7}
    fields = {"limits": limits, "env_vars": {"A": "b"}, "labels": {"team": "x"}}
    with Vm(server, vm_name="asked for", **fields) as vm:
        shown = rest(f"{url}/instances/{vm.id}")
        assert (shown["vcpus"], shown["memory_mb"], shown["overlay_size"]) == (3, 768, "7GB"), shown
        assert shown["env"] == {"A": "b"} and shown["labels"] == {"team": "x", "user_id": "tester"}, shown
        status = server.call("GetVMStatus", {"vm_id": "asked for"})
        assert dict(status.labels) == {"team": "x"} and status.vm_id == vm.id, status
        found = rest(f"{url}/instances?labels=user_id%3Dtester")
        assert [one["id"] for one in found] == [vm.id], found


def a_create_that_can_never_work_names_the_field(server, url):
    for request, word in [
        ({"image": "busybox"}, "user_id"),
        ({"user_id": "x"}, "image"),
        ({"user_id": "x", "image": "busybox", "limits": {"cpu_count": 9}}, "cpu_count"),
        ({"user_id": "x", "image": "busybox", "limits": {"cpu_count": -1}}, "cpu_count"),
        ({"user_id": "x", "image": "busybox", "limits": {"memory_mb": 511}}, "memory_mb"),
        ({"user_id": "x", "image": "busybox", "limits": {"memory_mb": 16385}}, "memory_mb"),
        ({"user_id": "x", "image": "busybox", "limits": {"disk_size_gb": 4}}, "disk_size_gb"),
        ({"user_id": "x", "image": "busybox", "limits": {"disk_size_gb": 101}}, "disk_size_gb"),
        ({"user_id": "x", "image": "busybox", "ports": ["80"]}, "ports"),
        ({"user_id": "x", "image": "busybox", "ports": ["1:2/sctp"]}, "ports"),
        ({"user_id": "x", "image": "busybox", "env_vars": {"a=b": "c"}}, "env"),
        ({"user_id": "x", "image": "busybox", "labels": {"user_id": "y"}}, "user_id"),
        ({"user_id": "x", "image": "busybox", "vm_name": "n" * 200}, "name"),
        ({"user_id": "x\ny", "image": "busybox"}, "user_id"),
        ({"user_id": "x", "image": "busybox", "ssh_keys": ["no key"]}, "ssh_keys"),
    ]:
        server.refused(StatusCode.INVALID_ARGUMENT, "CreateVM", request, word)
    assert server.call("ListVMs", {"user_id": "x"}).total == 0


def a_name_is_taken_once(server, url):
    with Vm(server, vm_name="one") as vm:
        request = {"user_id": "other", "image": "busybox", "vm_name": "one"}
        error = server.refused(StatusCode.ALREADY_EXISTS, "CreateVM", request, "one")
        assert ("warren-code", "name_taken") in error.trailing_metadata(), error
        assert server.call("GetVMStatus", {"vm_id": "one"}).vm_id == vm.id


def an_image_that_nobody_has_is_told(server, url):
    request = {"user_id": "x", "image": "elsewhere.example/none:1"}
    error = server.refused(StatusCode.PERMISSION_DENIED, "CreateVM", request, "elsewhere.example")
    assert error.details(), error


def more_than_the_host_has_is_told(server, url):
    made = []
    try:
        for number in range(200):
            name = f"large-{number}"
            request = {"user_id": "large", "vm_name": name, "image": "busybox", "limits": {"memory_mb": 16384}}
            made.append(name)
            try:
                server.call("CreateVM", request)
            except grpc.RpcError as error:
                assert error.code() == StatusCode.RESOURCE_EXHAUSTED, error
                made.pop()
                return
        raise AssertionError("200 times 16 GB fit")
    finally:
        for name in made:
            server.call("DeleteVM", {"vm_id": name, "force": True})


# --- a VM's life ---------------------------------------------------------------------------------------------


def a_vm_is_found_by_its_id_and_its_name_only(server, url):
    for method, more in OF_A_VM.items():
        server.refused(StatusCode.NOT_FOUND, method, {"vm_id": "nobody", **more}, "nobody")
        server.refused(StatusCode.INVALID_ARGUMENT, method, {**more}, "vm_id")
    with Vm(server, vm_name="found") as vm:
        for name in (vm.id, "found"):
            assert server.call("GetVMStatus", {"vm_id": name}).vm_id == vm.id
        server.refused(StatusCode.NOT_FOUND, "GetVMStatus", {"vm_id": vm.id[:8]})


def stop_and_start_and_stop_again(server, url):
    with Vm(server) as vm:
        assert server.call("StartVM", {"vm_id": vm.id}).status == "running"
        stopped = server.call("StopVM", {"vm_id": vm.id, "timeout_seconds": 5})
        assert stopped.status == "stopped" and stopped.vm_name == "tester-env", stopped
        assert server.call("StopVM", {"vm_id": vm.id}).status == "stopped"
        status = server.call("GetVMStatus", {"vm_id": vm.id})
        assert (status.status, status.uptime_seconds) == ("stopped", 0), status
        server.refused(StatusCode.FAILED_PRECONDITION, "ExecuteCommand", {"vm_id": vm.id, "command": ["echo"]}, "start it")
        assert server.call("StartVM", {"vm_id": vm.id}).status == "running"
        for seconds in (-1, 3601):
            request = {"vm_id": vm.id, "timeout_seconds": seconds}
            server.refused(StatusCode.INVALID_ARGUMENT, "StopVM", request, "timeout_seconds")


def what_runs_is_deleted_by_force_only(server, url):
    with Vm(server) as vm:
        server.refused(StatusCode.FAILED_PRECONDITION, "DeleteVM", {"vm_id": vm.id}, "force")
        deleted = server.call("DeleteVM", {"vm_id": vm.id, "force": True})
        assert deleted.vm_id == vm.id and deleted.vm_name == "tester-env", deleted
        server.refused(StatusCode.NOT_FOUND, "GetVMStatus", {"vm_id": vm.id})
    with Vm(server) as vm:
        server.call("StopVM", {"vm_id": vm.id, "timeout_seconds": 1})
        server.call("DeleteVM", {"vm_id": vm.id})
        server.refused(StatusCode.NOT_FOUND, "DeleteVM", {"vm_id": vm.id, "force": True})


def what_is_paused_by_rest_goes_on_by_start(server, url):
    with Vm(server) as vm:
        rest(f"{url}/instances/{vm.id}/pause", "POST")
        assert server.call("GetVMStatus", {"vm_id": vm.id}).status == "stopped"
        assert server.call("StartVM", {"vm_id": vm.id}).status == "running"
        assert rest(f"{url}/instances/{vm.id}")["state"] == "Running"


def lists_are_filtered_counted_and_paged(server, url):
    fields = [("a", "p1"), ("a", "p2"), ("b", "p3"), ("a", "p4")]
    vms = [Vm(server, user=user, vm_name=name) for user, name in fields]
    try:
        server.call("StopVM", {"vm_id": "p2", "timeout_seconds": 1})

        def names(**request):
            answer = server.call("ListVMs", request)
            return [vm.vm_name for vm in answer.vms], answer.total

        assert names() == (["p1", "p2", "p3", "p4"], 4)
        assert names(user_id="a") == (["p1", "p2", "p4"], 3)
        assert names(user_id="a", status="running") == (["p1", "p4"], 2)
        assert names(status="stopped") == (["p2"], 1)
        assert names(user_id="nobody") == ([], 0)
        assert names(limit=2) == (["p1", "p2"], 4)
        assert names(limit=2, offset=3) == (["p4"], 4)
        assert names(offset=9) == ([], 4)
        listed = server.call("ListVMs", {"user_id": "b"}).vms[0]
        assert (listed.vm_id, listed.user_id, listed.image) == (vms[2].id, "b", "busybox"), listed
        for request, word in [({"status": "Running"}, "status"), ({"limit": -1}, "limit"), ({"limit": 1001}, "limit"), ({"offset": -1}, "offset")]:
            server.refused(StatusCode.INVALID_ARGUMENT, "ListVMs", request, word)
    finally:
        for vm in vms:
            vm.__exit__()


def limits_change_where_they_can_and_say_where_not(server, url):
    with Vm(server) as vm:

        def update(**limits):
            return {"vm_id": vm.id, "limits": limits}

        error = server.refused(
            StatusCode.FAILED_PRECONDITION, "UpdateResourceLimits", update(cpu_count=4, memory_mb=1024, disk_size_gb=10)
        )
        for field in ("cpu_count", "memory_mb", "disk_size_gb"):
            assert f"{field} cannot be changed" in error.details(), error.details()
        error = server.refused(StatusCode.FAILED_PRECONDITION, "UpdateResourceLimits", update(cpu_count=4, memory_mb=512))
        assert "memory_mb" not in error.details() and "stop it" in error.details(), error.details()
        assert server.call("UpdateResourceLimits", update(memory_mb=512)).status == "running"
        server.call("StopVM", {"vm_id": vm.id, "timeout_seconds": 1})
        error = server.refused(StatusCode.FAILED_PRECONDITION, "UpdateResourceLimits", update(cpu_count=4, disk_size_gb=10))
        assert "cpu_count" not in error.details(), error.details()
        assert rest(f"{url}/instances/{vm.id}")["vcpus"] == 2
        assert server.call("UpdateResourceLimits", update(cpu_count=4, memory_mb=1024)).status == "stopped"
        shown = rest(f"{url}/instances/{vm.id}")
        assert (shown["vcpus"], shown["memory_mb"], shown["memory_max_mb"]) == (4, 1024, 1024), shown
        assert server.call("StartVM", {"vm_id": vm.id}).status == "running"
        server.refused(StatusCode.INVALID_ARGUMENT, "UpdateResourceLimits", {"vm_id": vm.id}, "limits")
        server.refused(StatusCode.INVALID_ARGUMENT, "UpdateResourceLimits", update(cpu_count=9), "cpu_count")


def usage_is_told(server, url):
    with Vm(server) as vm:
        answer = server.call("GetResourceUsage", {"vm_id": vm.id})
        usage = answer.usage
        assert answer.vm_id == vm.id and abs(answer.timestamp - time.time()) < 60, answer
        assert (usage.memory_total_mb, usage.disk_total_gb) == (512, 5), usage
        assert 0 <= usage.cpu_percent <= 100 and usage.memory_used_mb >= 0, usage
        server.call("StopVM", {"vm_id": vm.id, "timeout_seconds": 1})
        assert server.call("GetResourceUsage", {"vm_id": vm.id}).usage.cpu_percent == 0


# --- commands ------------------------------------------------------------------------------------------------


def commands_tell_their_output_and_exit_code(server, url):
    with Vm(server) as vm:
        ran = server.call("ExecuteCommand", {"vm_id": vm.id, "command": ["echo", "one", "two"]})
        assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "one two\n", ""), ran
        assert ran.execution_time_ms >= 0
        assert server.call("ExecuteCommand", {"vm_id": vm.id, "command": ["exit", "7"]}).exit_code == 7
        none = server.call("ExecuteCommand", {"vm_id": vm.id, "command": ["no-such-program"]})
        assert none.exit_code == 127 and "no-such-program" in none.stderr, none
        # Its input is at its end from the start.
        assert server.call("ExecuteCommand", {"vm_id": vm.id, "command": ["cat"]}).exit_code == 0


def commands_that_are_none_are_refused(server, url):
    with Vm(server) as vm:
        for more in ({}, {"command": [""]}, {"command": ["a\0b"]}, {"command": ["a"], "env": {"x=": "y"}}):
            server.refused(StatusCode.INVALID_ARGUMENT, "ExecuteCommand", {"vm_id": vm.id, **more})
        request = {"vm_id": vm.id, "command": ["a"], "timeout_seconds": -1}
        server.refused(StatusCode.INVALID_ARGUMENT, "ExecuteCommandStream", request, "timeout_seconds")
        request = {"vm_id": vm.id, "command": ["a", "b" * 200_000]}
        server.refused(StatusCode.INVALID_ARGUMENT, "ExecuteCommand", request, "128 KiB")


def a_command_whose_time_is_up_fails(server, url):
    with Vm(server) as vm:
        for method in ("ExecuteCommand", "ExecuteCommandStream"):
            began = time.monotonic()
            request = {"vm_id": vm.id, "command": ["sleep", "60"], "timeout_seconds": 1}
            server.refused(StatusCode.DEADLINE_EXCEEDED, method, request, "killed")
            assert time.monotonic() - began < 20, method


def output_is_streamed_as_it_comes(server, url):
    with Vm(server) as vm:
        stream = server.invoke("ExecuteCommandStream", {"vm_id": vm.id, "command": ["count", "20"]})
        got = b""
        for piece in stream:
            assert piece.stream_type == "stdout", piece
            got += piece.data
            if b"\n5\n" in got:
                break
        assert got.startswith(b"1\n2\n3\n"), got
        stream.cancel()
        stream = server.invoke("ExecuteCommandStream", {"vm_id": vm.id, "command": ["exit", "3"]})
        assert list(stream) == [] and stream.code() == StatusCode.OK
        assert ("exit-code", "3") in stream.trailing_metadata(), stream.trailing_metadata()
        stream = server.invoke("ExecuteCommandStream", {"vm_id": vm.id, "command": ["nothing"]})
        assert b"nothing" in b"".join(piece.data for piece in stream if piece.stream_type == "stderr")
        assert ("exit-code", "127") in stream.trailing_metadata()


def many_commands_run_at_once(server, url):
    with Vm(server) as vm:
        calls = [server.invoke("ExecuteCommand", {"vm_id": vm.id, "command": ["echo", str(n)]}) for n in range(100)]
        assert [call.result().stdout for call in calls] == [f"{n}\n" for n in range(100)]


# --- files ---------------------------------------------------------------------------------------------------


def files_are_written_read_listed_and_removed(server, url):
    with Vm(server) as vm:

        def of(**fields):
            return {"vm_id": vm.id, **fields}

        def write(path, content, **more):
            request = server.message("container.WriteFileRequest")(vm_id=vm.id, file_path=path, content=content, **more)
            return server.call("WriteFile", request)

        assert server.call("CreateDirectory", of(directory_path="/d/e", create_parents=True, permissions=0o750)).success
        server.refused(StatusCode.ALREADY_EXISTS, "CreateDirectory", of(directory_path="/d/e"))
        assert server.call("CreateDirectory", of(directory_path="/d/e", create_parents=True)).success
        server.refused(StatusCode.NOT_FOUND, "CreateDirectory", of(directory_path="/no/where"))
        content = bytes(range(256)) * 5000
        written = write("/d/file", content, permissions=0o640)
        assert written.success and written.bytes_written == len(content), written
        server.refused(StatusCode.NOT_FOUND, "WriteFile", of(file_path="/new/deep/file"))
        write("/new/deep/file", b"deep", create_parents=True)
        read = server.call("ReadFile", of(file_path="/d/file"))
        assert read.content == content and (read.size, read.permissions) == (len(content), 0o640), read.size
        assert abs(read.modified_time - time.time()) < 60, read.modified_time
        part = server.call("ReadFile", of(file_path="/d/file", offset=255, length=3))
        assert part.content == b"\xff\x00\x01" and part.size == len(content), part
        assert server.call("ReadFile", of(file_path="/d/file", offset=len(content) + 9)).content == b""
        server.refused(StatusCode.NOT_FOUND, "ReadFile", of(file_path="/d/none"))
        server.refused(StatusCode.FAILED_PRECONDITION, "ReadFile", of(file_path="/d"))
        listed = server.call("ListFiles", of(directory_path="/", recursive=True)).files
        shown = {file.path: file for file in listed}
        assert shown["/d"].is_directory and shown["/d/e"].permissions == 0o750, shown
        file = shown["/d/file"]
        assert (file.name, file.is_directory, file.size, file.permissions) == ("file", False, len(content), 0o640)
        assert [file.path for file in listed] == sorted(shown), shown
        assert {file.path for file in server.call("ListFiles", of(directory_path="/new")).files} == {"/new/deep"}
        server.refused(StatusCode.NOT_FOUND, "ListFiles", of(directory_path="/none"))
        server.refused(StatusCode.FAILED_PRECONDITION, "DeleteFile", of(file_path="/d"))
        assert server.call("DeleteFile", of(file_path="/d/file")).success
        server.refused(StatusCode.NOT_FOUND, "DeleteFile", of(file_path="/d/file"))
        assert server.call("DeleteFile", of(file_path="/d", recursive=True)).success
        assert "/d" not in {file.path for file in server.call("ListFiles", of(directory_path="/")).files}


def paths_and_numbers_that_are_none_are_refused(server, url):
    with Vm(server) as vm:
        for method, field in [
            ("ReadFile", "file_path"),
            ("WriteFile", "file_path"),
            ("DeleteFile", "file_path"),
            ("CreateDirectory", "directory_path"),
        ]:
            for path in ("", "relative", "/a\0b", "/" + "x" * 5000):
                server.refused(StatusCode.INVALID_ARGUMENT, method, {"vm_id": vm.id, field: path})
        server.refused(StatusCode.INVALID_ARGUMENT, "ListFiles", {"vm_id": vm.id, "directory_path": "relative"})
        for more in ({"offset": -1}, {"length": -1}):
            server.refused(StatusCode.INVALID_ARGUMENT, "ReadFile", {"vm_id": vm.id, "file_path": "/x", **more})
        for permissions in (-1, 0o10000):
            request = {"vm_id": vm.id, "file_path": "/x", "permissions": permissions}
            server.refused(StatusCode.INVALID_ARGUMENT, "WriteFile", request, "permissions")
        server.call("StopVM", {"vm_id": vm.id, "timeout_seconds": 1})
        server.refused(StatusCode.FAILED_PRECONDITION, "ReadFile", {"vm_id": vm.id, "file_path": "/x"}, "start it")


def large_files_go_in_and_out_in_one_message(server, url):
    with Vm(server) as vm:
        request = server.message("container.WriteFileRequest")(vm_id=vm.id, file_path="/large", content=bytes(LARGEST - (1 << 20)))
        assert server.call("WriteFile", request, timeout=120).bytes_written == LARGEST - (1 << 20)
        read = server.call("ReadFile", {"vm_id": vm.id, "file_path": "/large"}, timeout=120)
        assert read.content == request.content
        # One that is larger is read in parts.
        request.file_path, request.content = "/larger", bytes(LARGEST - 1024)
        server.call("WriteFile", request, timeout=120)
        server.refused(StatusCode.RESOURCE_EXHAUSTED, "ReadFile", {"vm_id": vm.id, "file_path": "/larger"}, "offset")
        assert len(server.call("ReadFile", {"vm_id": vm.id, "file_path": "/larger", "offset": 2 << 20}, timeout=120).content) == LARGEST - 1024 - (2 << 20)


def keys_are_put_into_root_s_file(server, url):
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB" + "0" * 43 + " me@example"
    with Vm(server, ssh_keys=[key]) as vm:
        read = server.call("ReadFile", {"vm_id": vm.id, "file_path": "/root/.ssh/authorized_keys"})
        assert (read.content.decode(), read.permissions) == (key + "\n", 0o600), read
        directory = {file.name: file for file in server.call("ListFiles", {"vm_id": vm.id}).files}
        assert directory[".ssh"].permissions == 0o700, directory


# --- logs ----------------------------------------------------------------------------------------------------


def logs_have_a_tail_a_since_and_go_on(server, url):
    body = {"name": "logged", "image": "busybox", "cmd": ["count", "50"], "network": {"enabled": False}}
    rest(f"{url}/instances", "POST", body)
    try:
        followed = server.invoke("GetLogs", {"vm_id": "logged", "follow": True})
        lines = []
        for entry in followed:
            if entry.source == "vm":
                assert entry.level == "info" and abs(entry.timestamp - time.time()) < 60, entry
                lines.append(entry.message)
            if len(lines) == 20:
                break
        followed.cancel()
        assert lines == [str(n) for n in range(1, 21)], lines
        last = [entry for entry in server.call_all("GetLogs", {"vm_id": "logged", "tail_lines": 3})]
        assert len(last) == 3, last
        numbers = [int(entry.message) for entry in last if entry.source == "vm"]
        assert numbers and numbers[-1] >= 20, numbers
        future = {"vm_id": "logged", "since_timestamp": int(time.time()) + 3600}
        assert server.call_all("GetLogs", future) == []
        for request in ({"tail_lines": -1}, {"since_timestamp": -1}):
            server.refused(StatusCode.INVALID_ARGUMENT, "GetLogs", {"vm_id": "logged", **request})
        # One that follows hears the end.
        followed = server.invoke("GetLogs", {"vm_id": "logged", "follow": True, "tail_lines": 1})
        next(followed)
        ended = threading.Event()
        reader = threading.Thread(target=lambda: (sum(1 for _ in followed), ended.set()), daemon=True)
        reader.start()
        server.call("StopVM", {"vm_id": "logged", "timeout_seconds": 1})
        assert ended.wait(20), "the stream did not end with the VM"
    finally:
        server.call("DeleteVM", {"vm_id": "logged", "force": True})


# --- the rest ------------------------------------------------------------------------------------------------


def snapshots_are_not_there_yet(server, url):
    with Vm(server) as vm:
        server.refused(StatusCode.UNIMPLEMENTED, "CreateSnapshot", {"vm_id": vm.id, "snapshot_name": "s"}, "snapshots")
        server.refused(StatusCode.UNIMPLEMENTED, "RestoreSnapshot", {"vm_id": vm.id, "snapshot_id": "s"}, "snapshots")


def large_messages_are_bounded(server, url):
    request = server.message("container.WriteFileRequest")()
    request.vm_id, request.file_path = "nobody", "/x"
    request.content = bytes(LARGEST - 1024)
    try:
        server.call("WriteFile", request, timeout=120)
        raise AssertionError("nobody has a file")
    except grpc.RpcError as error:
        assert error.code() == StatusCode.NOT_FOUND, error
    request.content = bytes(LARGEST + 1)
    try:
        server.call("WriteFile", request, timeout=120)
        raise AssertionError("it was taken")
    except grpc.RpcError as error:
        assert error.code() in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.OUT_OF_RANGE), error


def other_methods_and_services_are_unimplemented(server, url):
    for path in (f"/{SERVICE}/Nothing", "/no.such.Service/Nothing"):
        call = server.channel.unary_unary(path)
        try:
            call(b"", timeout=20)
            raise AssertionError(f"{path} answered")
        except grpc.RpcError as error:
            assert error.code() == StatusCode.UNIMPLEMENTED, error


def bytes_that_are_no_message_are_refused(server, url):
    for garbage in (b"\xff" * 64, b"\x0a\x05ab", b"\x0a\x02\xff\xfe"):
        try:
            server.channel.unary_unary(f"/{SERVICE}/CreateVM")(garbage, timeout=20)
            raise AssertionError("it was taken")
        except grpc.RpcError as error:
            assert error.code() in (StatusCode.INTERNAL, StatusCode.INVALID_ARGUMENT), error


# --- a server with a secret ----------------------------------------------------------------------------------


def token(secret, **claims):
    def b64(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = b64(b'{"alg":"HS256","typ":"JWT"}') + "." + b64(json.dumps(claims).encode())
    return head + "." + b64(hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest())


def no_token_opens_health_and_reflection_only(server, url, secret):
    assert server.call("grpc.health.v1.Health/Check").status == 1
    assert SERVICE in server.services()
    for method in server.methods():
        server.refused(StatusCode.UNAUTHENTICATED, method)
    for bad in (token("another secret", sub="alice"), token(secret, sub="alice", exp=1), "nonsense"):
        metadata = (("authorization", f"Bearer {bad}"),)
        server.refused(StatusCode.UNAUTHENTICATED, "ListVMs", metadata=metadata)


def a_user_is_the_tokens_subject(server, url, secret):
    alice, bob = (Server(ADDRESS, token(secret, sub=name)) for name in ("alice", "bob"))
    with Vm(alice, user="alice") as hers, Vm(bob, user="bob") as his:
        request = {"user_id": "bob", "image": "busybox", "vm_name": "forged"}
        alice.refused(StatusCode.PERMISSION_DENIED, "CreateVM", request, "user_id")
        assert [vm.vm_id for vm in alice.call("ListVMs").vms] == [hers.id]
        assert [vm.vm_id for vm in alice.call("ListVMs", {"user_id": "alice"}).vms] == [hers.id]
        alice.refused(StatusCode.PERMISSION_DENIED, "ListVMs", {"user_id": "bob"}, "user_id")
        for method, more in OF_A_VM.items():
            for name in (his.id, "bob-env"):
                alice.refused(StatusCode.NOT_FOUND, method, {"vm_id": name, **more})
        assert bob.call("GetVMStatus", {"vm_id": his.id}).status == "running"
        assert len(rest(f"{url}/instances", token=token(secret))) == 2


def a_token_without_a_subject_is_nobodys(server, url, secret):
    nobody = Server(ADDRESS, token(secret))
    nobody.refused(StatusCode.PERMISSION_DENIED, "ListVMs", {}, "sub")


def scopes_are_those_of_rest(server, url, secret):
    reader = Server(ADDRESS, token(secret, sub="carol", permissions=["instance:read"]))
    assert reader.call("ListVMs").total == 0
    request = {"user_id": "carol", "image": "busybox"}
    reader.refused(StatusCode.PERMISSION_DENIED, "CreateVM", request, "instance:write")
    writer = Server(ADDRESS, token(secret, sub="carol", permissions=["instance:read", "instance:write"]))
    writer.refused(StatusCode.PERMISSION_DENIED, "CreateVM", {**request, "image": "not-here:1"}, "image:write")
    made = writer.call("CreateVM", request)
    writer.refused(StatusCode.PERMISSION_DENIED, "DeleteVM", {"vm_id": made.vm_id, "force": True}, "instance:delete")
    Server(ADDRESS, token(secret, sub="carol")).call("DeleteVM", {"vm_id": made.vm_id, "force": True})


OPEN = [
    health_answers_to_its_names,
    reflection_is_there_in_both_versions,
    the_wire_is_what_clients_were_built_with,
    what_is_left_out_has_defaults,
    what_is_asked_for_is_made,
    a_create_that_can_never_work_names_the_field,
    a_name_is_taken_once,
    an_image_that_nobody_has_is_told,
    more_than_the_host_has_is_told,
    a_vm_is_found_by_its_id_and_its_name_only,
    stop_and_start_and_stop_again,
    what_runs_is_deleted_by_force_only,
    what_is_paused_by_rest_goes_on_by_start,
    lists_are_filtered_counted_and_paged,
    limits_change_where_they_can_and_say_where_not,
    usage_is_told,
    commands_tell_their_output_and_exit_code,
    commands_that_are_none_are_refused,
    a_command_whose_time_is_up_fails,
    output_is_streamed_as_it_comes,
    many_commands_run_at_once,
    files_are_written_read_listed_and_removed,
    paths_and_numbers_that_are_none_are_refused,
    large_files_go_in_and_out_in_one_message,
    keys_are_put_into_root_s_file,
    logs_have_a_tail_a_since_and_go_on,
    snapshots_are_not_there_yet,
    large_messages_are_bounded,
    other_methods_and_services_are_unimplemented,
    bytes_that_are_no_message_are_refused,
]
SECRET = [
    no_token_opens_health_and_reflection_only,
    a_user_is_the_tokens_subject,
    a_token_without_a_subject_is_nobodys,
    scopes_are_those_of_rest,
]


def main():
    global ADDRESS
    ADDRESS, url = sys.argv[1:3]
    secret = sys.argv[4:5] if sys.argv[3:4] == ["--secret"] else []
    return results.run("grpc-", SECRET if secret else OPEN, Server(ADDRESS), url, *secret)


if __name__ == "__main__":
    sys.exit(main())
