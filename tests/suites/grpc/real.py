#!/usr/bin/env python3
"""container.ContainerService over a real guest, one PASS or FAIL a line.

Usage: real.py ADDRESS IMAGE: IMAGE has a shell and is not on the server yet.
"""

import hashlib
import sys
import time

import results
from grpc import StatusCode
from reflected import Server

VM = {"vm_id": "real"}


def shell(script, **more):
    return {**VM, "command": ["sh", "-c", script], **more}


def an_image_that_is_not_here_is_pulled(server):
    limits = {"cpu_count": 1, "memory_mb": 512, "disk_size_gb": 5}
    request = {"user_id": "real", "vm_name": "real", "image": IMAGE, "limits": limits, "env_vars": {"COLOUR": "blue"}}
    made = server.call("CreateVM", request, timeout=180)
    assert made.status == "running", made


def outputs_are_apart_and_the_exit_code_is_real(server):
    ran = server.call("ExecuteCommand", shell("echo out; echo err >&2; exit 9"))
    assert (ran.exit_code, ran.stdout, ran.stderr) == (9, "out\n", "err\n"), ran
    assert server.call("ExecuteCommand", shell("kill -9 $$")).exit_code == 137
    assert server.call("ExecuteCommand", {**VM, "command": ["no-such"]}).exit_code == 127


def the_directory_and_the_environment_are_as_asked(server):
    assert server.call("ExecuteCommand", {**VM, "command": ["pwd"]}).stdout == "/root\n"
    assert server.call("ExecuteCommand", shell("pwd", working_dir="/tmp")).stdout == "/tmp\n"
    ran = server.call("ExecuteCommand", shell("echo $COLOUR $SIZE", env={"SIZE": "large"}))
    assert ran.stdout == "blue large\n", ran
    nowhere = server.call("ExecuteCommand", shell("pwd", working_dir="/nowhere"))
    assert nowhere.exit_code == 126 and "/nowhere" in nowhere.stderr, nowhere


def a_terminal_is_given(server):
    ran = server.call("ExecuteCommand", shell("test -t 1 && echo a terminal", tty=True))
    assert "a terminal" in ran.stdout and ran.exit_code == 0, ran
    assert server.call("ExecuteCommand", shell("test -t 1")).exit_code == 1


def a_command_whose_time_is_up_goes_with_its_children(server):
    for method in ("ExecuteCommand", "ExecuteCommandStream"):
        began = time.monotonic()
        request = shell("sleep 4321 & sleep 4321", timeout_seconds=1)
        server.refused(StatusCode.DEADLINE_EXCEEDED, method, request, "killed")
        assert time.monotonic() - began < 30
        left = server.call("ExecuteCommand", shell("ps | grep -c '[s]leep 4321'"))
        assert left.stdout == "0\n", left


def a_stream_that_is_given_up_ends_its_command(server):
    stream = server.invoke("ExecuteCommandStream", shell("echo here; exec sleep 5432"))
    assert next(stream).data == b"here\n"
    stream.cancel()
    deadline = time.monotonic() + 20
    while server.call("ExecuteCommand", shell("ps | grep -c '[s]leep 5432'")).stdout != "0\n":
        assert time.monotonic() < deadline, "the command goes on"
        time.sleep(0.1)


def streams_come_whole_and_in_order(server):
    stream = server.invoke("ExecuteCommandStream", shell("seq 1 200000; echo end >&2"), timeout=120)
    outputs = {"stdout": b"", "stderr": b""}
    for piece in stream:
        outputs[piece.stream_type] += piece.data
    assert outputs["stdout"] == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert outputs["stderr"] == b"end\n" and ("exit-code", "0") in stream.trailing_metadata()


def large_outputs_fit_in_one_answer(server):
    ran = server.call("ExecuteCommand", shell("head -c 8000000 /dev/zero | tr '\\0' x"), timeout=120)
    assert ran.exit_code == 0 and ran.stdout == "x" * 8000000, len(ran.stdout)


def files_are_those_that_commands_see(server):
    content = bytes(range(256)) * 4096
    request = server.message("container.WriteFileRequest")(file_path="/srv/new/file", content=content, create_parents=True, **VM)
    request.permissions = 0o755
    assert server.call("WriteFile", request).bytes_written == len(content)
    ran = server.call("ExecuteCommand", shell("md5sum < file; stat -c %a file", working_dir="/srv/new"))
    assert ran.stdout.split() == [hashlib.md5(content).hexdigest(), "-", "755"], ran
    server.call("ExecuteCommand", shell("printf 'of a command' > made; ln -s /etc/passwd link", working_dir="/srv/new"))
    read = server.call("ReadFile", {**VM, "file_path": "/srv/new/made", "offset": 3, "length": 5})
    assert (read.content, read.size) == (b"a com", 12), read
    assert b"root" in server.call("ReadFile", {**VM, "file_path": "/srv/new/link"}).content
    names = [file.name for file in server.call("ListFiles", {**VM, "directory_path": "/srv/new"}).files]
    assert names == ["file", "link", "made"], names
    made_up = server.call("ReadFile", {**VM, "file_path": "/proc/version"}).content
    assert made_up.startswith(b"Linux"), made_up
    server.call("DeleteFile", {**VM, "file_path": "/srv/new", "recursive": True})
    assert server.call("ExecuteCommand", shell("ls /srv/new")).exit_code != 0
    assert b"root" in server.call("ReadFile", {**VM, "file_path": "/etc/passwd"}).content


def usage_is_measured(server):
    busy = server.invoke("ExecuteCommandStream", shell("echo on; while :; do :; done"))
    next(busy)
    deadline = time.monotonic() + 30
    while True:
        usage = server.call("GetResourceUsage", VM).usage
        if usage.cpu_percent > 20 or time.monotonic() > deadline:
            break
    busy.cancel()
    assert 20 < usage.cpu_percent <= 100, usage
    assert 0 < usage.memory_used_mb < 512 and usage.memory_total_mb == 512, usage
    assert 0 < usage.disk_used_gb <= usage.disk_total_gb == 5, usage
    status = server.call("GetVMStatus", VM)
    assert status.uptime_seconds >= 0 and status.resource_usage.memory_used_mb > 0, status


def logs_are_of_the_command_and_of_the_kernel(server):
    # A kernel that finds nothing wrong is silent; this is an alert of it, to be seen whatever its level is.
    said = server.call("ExecuteCommand", shell("echo '<1>said by the kernel' >/dev/kmsg"))
    assert said.exit_code == 0, said
    deadline = time.monotonic() + 20
    while True:
        entries = server.call_all("GetLogs", VM)
        heard = any("said by the kernel" in entry.message for entry in entries if entry.source == "kernel")
        if heard or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    sources = {entry.source for entry in entries}
    assert heard, sources
    assert {"vm", "kernel"} <= sources <= {"vm", "kernel", "service"}, sources
    assert any("serving /var/www" in entry.message for entry in entries if entry.source == "vm")
    times = [entry.timestamp for entry in entries]
    assert times == sorted(times)


def it_stops_and_comes_back_with_its_disk(server):
    server.call("ExecuteCommand", shell("echo kept > /root/note; sync"))
    assert server.call("StopVM", {**VM, "timeout_seconds": 5}).status == "stopped"
    assert server.call("StartVM", VM, timeout=90).status == "running"
    assert server.call("ExecuteCommand", shell("cat note")).stdout == "kept\n"


def it_goes(server):
    server.call("DeleteVM", {**VM, "force": True})
    server.refused(StatusCode.NOT_FOUND, "GetVMStatus", VM)


TESTS = [
    an_image_that_is_not_here_is_pulled,
    outputs_are_apart_and_the_exit_code_is_real,
    the_directory_and_the_environment_are_as_asked,
    a_terminal_is_given,
    a_command_whose_time_is_up_goes_with_its_children,
    a_stream_that_is_given_up_ends_its_command,
    streams_come_whole_and_in_order,
    large_outputs_fit_in_one_answer,
    files_are_those_that_commands_see,
    usage_is_measured,
    logs_are_of_the_command_and_of_the_kernel,
    it_stops_and_comes_back_with_its_disk,
    it_goes,
]


def main():
    global IMAGE
    address, IMAGE = sys.argv[1:3]
    return results.run("grpc-guest-", TESTS, Server(address))


if __name__ == "__main__":
    sys.exit(main())
