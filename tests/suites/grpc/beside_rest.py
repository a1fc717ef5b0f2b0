#!/usr/bin/env python3
"""container.ContainerService on the port of REST, one PASS or FAIL a line: gRPC, and without a gRPC library Connect's unary
calls and gRPC-Web, over HTTP/1.1.

Usage: beside_rest.py ADDRESS URL of a server with the fake hypervisor and the image busybox.
"""

import base64
import http.client
import json
import struct
import sys
import urllib.parse

import results
from reflected import SERVICE, Server


def post(url, method, body, kind, **headers):
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", f"/{SERVICE}/{method}", body=body, headers={"Content-Type": kind, **headers})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def connect(url, method, request, **headers):
    status, headers, body = post(url, method, json.dumps(request), "application/json", Connect_Protocol_Version="1", **headers)
    assert headers["content-type"] == "application/json", headers
    return status, json.loads(body)


def frames(body):
    """The messages and the trailers of a gRPC-Web answer."""
    messages, trailers = [], {}
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        content, body = body[5 : 5 + length], body[5 + length :]
        if flag & 0x80:
            trailers = dict(line.split(":", 1) for line in content.decode().split("\r\n") if line)
        else:
            messages.append(content)
    return messages, {name.strip(): value.strip() for name, value in trailers.items()}


def framed(message):
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def grpc_is_there_too(server, url):
    # Reflection is on the other port.
    beside = Server(ADDRESS)
    beside.channel = Server(urllib.parse.urlsplit(url).netloc).channel
    made = beside.call("CreateVM", {"user_id": "beside", "image": "busybox", "limits": {"memory_mb": 512}})
    assert made.status == "running", made
    ran = beside.call("ExecuteCommand", {"vm_id": "beside-env", "command": ["echo", "beside"]})
    assert ran.stdout == "beside\n", ran


def connect_speaks_json(server, url):
    status, shown = connect(url, "GetVMStatus", {"vmId": "beside-env"})
    assert status == 200 and shown["userId"] == "beside" and shown["status"] == "running", shown
    assert isinstance(shown["createdAt"], str), shown
    status, ran = connect(url, "ExecuteCommand", {"vm_id": "beside-env", "command": ["exit", "3"]})
    assert status == 200 and ran["exitCode"] == 3, ran
    status, error = connect(url, "GetVMStatus", {"vmId": "nobody"})
    assert (status, error["code"]) == (404, "not_found") and "nobody" in error["message"], error
    status, error = connect(url, "CreateVM", {"userId": "x", "image": 7})
    assert (status, error["code"]) == (400, "invalid_argument"), error
    status, error = connect(url, "ListVMs", {}, Origin="http://evil.example")
    assert (status, error["code"]) == (403, "permission_denied"), error


def connect_speaks_proto(server, url):
    request = server.message("container.ListVMsRequest")(user_id="beside")
    status, headers, body = post(url, "ListVMs", request.SerializeToString(), "application/proto")
    assert (status, headers["content-type"]) == (200, "application/proto"), headers
    assert server.message("container.ListVMsResponse").FromString(body).total == 1


def grpc_web_has_answers_streams_and_refusals(server, url):
    request = server.message("container.GetVMStatusRequest")(vm_id="beside-env")
    status, headers, body = post(url, "GetVMStatus", framed(request), "application/grpc-web+proto", X_Grpc_Web="1")
    messages, trailers = frames(body)
    assert status == 200 and headers["content-type"].startswith("application/grpc-web"), headers
    assert trailers["grpc-status"] == "0", trailers
    assert server.message("container.VMStatusResponse").FromString(messages[0]).vm_name == "beside-env"
    request = server.message("container.ExecuteCommandRequest")(vm_id="beside-env", command=["echo", "streamed"])
    status, headers, body = post(url, "ExecuteCommandStream", framed(request), "application/grpc-web", X_Grpc_Web="1")
    messages, trailers = frames(body)
    pieces = [server.message("container.ExecuteCommandStreamResponse").FromString(one) for one in messages]
    assert b"".join(piece.data for piece in pieces) == b"streamed\n", pieces
    assert (trailers["grpc-status"], trailers["exit-code"]) == ("0", "0"), trailers
    request = server.message("container.GetVMStatusRequest")(vm_id="nobody")
    status, headers, body = post(url, "GetVMStatus", framed(request), "application/grpc-web", X_Grpc_Web="1")
    assert headers.get("grpc-status", frames(body)[1].get("grpc-status")) == "5", (headers, body)


def grpc_web_is_text_where_asked(server, url):
    request = base64.b64encode(framed(server.message("container.ListVMsRequest")(user_id="beside")))
    kind = "application/grpc-web-text"
    status, headers, body = post(url, "ListVMs", request, kind, Accept=kind, X_Grpc_Web="1")
    # Each piece is padded by itself.
    decoded = b"".join(base64.b64decode(body[at : at + 4]) for at in range(0, len(body), 4))
    messages, trailers = frames(decoded)
    assert trailers["grpc-status"] == "0", trailers
    assert server.message("container.ListVMsResponse").FromString(messages[0]).total == 1


def what_it_made_goes(server, url):
    status, gone = connect(url, "DeleteVM", {"vmId": "beside-env", "force": True})
    assert status == 200 and gone["vmName"] == "beside-env", gone


TESTS = [
    grpc_is_there_too,
    connect_speaks_json,
    connect_speaks_proto,
    grpc_web_has_answers_streams_and_refusals,
    grpc_web_is_text_where_asked,
    what_it_made_goes,
]


def main():
    global ADDRESS
    ADDRESS, url = sys.argv[1:3]
    return results.run("grpc-beside-rest-", TESTS, Server(ADDRESS), url)


if __name__ == "__main__":
    sys.exit(main())
