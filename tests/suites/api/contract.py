#!/usr/bin/env python3
"""HTTP details of a running server that no schema says, one PASS or FAIL a line.

Usage: contract.py URL [--no-network], or contract.py URL --secret SECRET for a server with a JWT_SECRET. With
--no-network, guests that want one cannot start. Needs PyYAML and jsonschema_rs.
"""

import base64
import hashlib
import hmac
import http.client
import json
import sys
import time
import traceback
import urllib.parse

import jsonschema_rs
import yaml

# As the README of the first generation's server has it: clients were written after it.
CREATE_EXAMPLE = """{
    "id": "my-instance",
    "name": "My Workload",
    "image": "img-nginx",
    "memory_mb": 2048,
    "memory_max_mb": 4096,
    "vcpus": 2,
    "env": {
      "NODE_ENV": "production"
    }
  }"""

JSON = "application/json"
PROBLEM = "application/problem+json"


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.kind = (response.getheader("content-type") or "").split(";")[0]
        self.headers = response.headers
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def must(self, status, kind=None):
        assert self.status == status, f"{status} wanted, got {self.status}: {self.body[:500]!r}"
        assert kind is None or self.kind == kind, f"{kind} wanted, got {self.kind}"
        return self

    def must_be_problem(self, status, code=None):
        problem = self.must(status, PROBLEM).json()
        for field in ("type", "title", "status", "detail", "code", "message"):
            assert problem.get(field), f"no {field} in {problem}"
        assert problem["status"] == status, problem
        assert code is None or problem["code"] == code, problem
        return self


class Client:
    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url)

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            if isinstance(body, dict):
                body = json.dumps(body)
            if body is not None:
                headers.setdefault("Content-Type", JSON)
            connection.request(method, path, body=body, headers=headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()


def validator(document, name):
    """A validator of one component of the served document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)


# --- a server without authentication -------------------------------------------------------------------------


def documents_are_one_and_parse(call):
    as_json = call("GET", "/spec.json").must(200, JSON).json()
    as_yaml = yaml.safe_load(call("GET", "/spec.yaml").must(200).body)
    assert as_json == as_yaml, "spec.json and spec.yaml differ"
    assert as_json["openapi"].startswith("3.1"), as_json["openapi"]


def reference_page_needs_nothing_from_elsewhere(call):
    page = call("GET", "/docs").must(200, "text/html").body.decode()
    for foreign in ('src="http', "src='http", 'src="//', 'href="http', "@import"):
        assert foreign not in page, f"{foreign} in /docs"


def health_is_ok(call):
    assert call("GET", "/health").must(200, JSON).json()["status"] == "ok"


def readiness_answers(call):
    call("GET", "/ready").must(200)


def metrics_are_what_prometheus_reads(call):
    answer = call("GET", "/metrics").must(200)
    assert answer.kind in ("text/plain", "application/openmetrics-text"), answer.kind
    assert b"# TYPE warren_" in answer.body, answer.body[:300]


def unknown_path_is_404_problem(call):
    call("GET", "/no/such/thing").must_be_problem(404)


def unknown_instance_and_image_are_404_problems(call):
    call("GET", "/instances/no-such-instance").must_be_problem(404)
    call("DELETE", "/instances/no-such-instance").must_be_problem(404)
    call("GET", "/images/no-such-image").must_be_problem(404)


def wrong_method_is_405_with_allow(call):
    answer = call("PUT", "/instances").must_be_problem(405)
    assert "POST" in answer.headers.get("allow", ""), dict(answer.headers)


def unknown_query_is_400(call):
    for path in ("/instances?colour=red", "/images?colour=red", "/health?colour=red"):
        call("GET", path).must_be_problem(400)


def malformed_bodies_are_400_and_other_kinds_415(call):
    call("POST", "/instances", "{").must_be_problem(400)
    call("POST", "/instances", "[]").must_be_problem(400)
    call("POST", "/instances", '{"id": "a", "name": "a", "image": "b", "colour": 1}').must_be_problem(400)
    call("POST", "/instances", "id=a", Content_Type="text/plain").must_be_problem(415)


def missing_image_is_404_and_says_what_to_do(call):
    answer = call("POST", "/instances", {"id": "none", "name": "none", "image": "localhost/none:1"})
    assert "warren pull" in answer.must_be_problem(404).json()["detail"], answer.body


def foreign_host_is_refused(call):
    for host in ("evil.example", "evil.example:80", "169.254.169.254"):
        answer = call("GET", "/instances", Host=host)
        assert answer.status in (400, 403, 421), f"{host}: {answer.status}"
    call("GET", "/health", Host=f"localhost:{call.address.port}").must(200)


def foreign_origin_is_refused(call):
    answer = call("POST", "/instances", "{}", Origin="https://evil.example")
    assert answer.status == 403, answer.status


def registries_elsewhere_are_refused(call):
    refused = call("POST", "/images", {"name": "registry.example/none:1"}).must_be_problem(403).json()
    assert "registry.example" in refused["detail"] and "only" in refused["detail"], refused
    call("POST", "/images", {"name": "localhost:1/no tag"}).must_be_problem(400)
    call("POST", "/images", {"name": "localhost:1/Capitals"}).must_be_problem(400)


def unserved_routes_say_so(call):
    call("POST", "/instances/seed-1/fork").must_be_problem(501)
    call("GET", "/volumes").must_be_problem(501)


def create_example_works_as_printed(call):
    document = call("GET", "/spec.json").json()
    created = call("POST", "/instances", CREATE_EXAMPLE).must(201, JSON).json()
    try:
        for answer in (created, call("GET", "/instances/my-instance").must(200, JSON).json()):
            validator(document, "Instance").validate(answer)
            for field, value in json.loads(CREATE_EXAMPLE).items():
                assert answer[field] == value, f"{field}: {answer[field]!r}"
            if "--no-network" in sys.argv:
                assert answer["state"] == "Stopped" and "network" in answer["state_error"], answer
            else:
                assert answer["state"] == "Running", answer
        by_name = call("GET", "/instances/" + urllib.parse.quote("My Workload"))
        assert by_name.must(200).json()["id"] == "my-instance"
        call("POST", "/instances", CREATE_EXAMPLE).must_be_problem(409)
    finally:
        call("DELETE", "/instances/my-instance").must(204)
    call("GET", "/instances/my-instance").must_be_problem(404)


def idempotency_key_answers_once(call):
    body = {"id": "once", "name": "once", "image": "busybox-web", "network": {"enabled": False}, "memory_mb": 128}
    first = call("POST", "/instances", body, Idempotency_Key="key-1").must(201)
    try:
        again = call("POST", "/instances", body, Idempotency_Key="key-1").must(201)
        assert first.json()["created_at"] == again.json()["created_at"]
        call("POST", "/instances", body | {"id": "other"}, Idempotency_Key="key-1").must_be_problem(409)
    finally:
        call("DELETE", "/instances/once").must(204)


def lists_validate_and_come_in_pages(call):
    document = call("GET", "/spec.json").json()
    everything = call("GET", "/instances").must(200, JSON).json()
    assert len(everything) >= 2, everything
    for instance in everything:
        validator(document, "Instance").validate(instance)
    for image in call("GET", "/images").must(200, JSON).json():
        validator(document, "Image").validate(image)
    seen, token = [], None
    while True:
        page = call("GET", "/instances?limit=1" + (f"&page_token={urllib.parse.quote(token)}" if token else "")).must(200)
        seen += [instance["id"] for instance in page.json()]
        token = page.headers.get("x-next-page-token")
        if not token:
            break
        assert len(seen) <= len(everything), "pages without end"
    assert sorted(seen) == sorted(instance["id"] for instance in everything), seen


# --- a server with a secret ----------------------------------------------------------------------------------


def token(secret, claims, algorithm="HS256"):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    text = part(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()) + "." + part(json.dumps(claims).encode())
    if algorithm == "none":
        return text + "."
    return text + "." + part(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())


def claims(**more):
    return {"sub": "tester", "iat": int(time.time()), "exp": int(time.time()) + 600} | more


def no_token_is_401(call, _):
    answer = call("GET", "/instances").must_be_problem(401)
    assert "bearer" in answer.headers.get("www-authenticate", "").lower(), dict(answer.headers)


def health_and_documents_need_no_token(call, _):
    for path in ("/health", "/spec.json", "/spec.yaml"):
        call("GET", path).must(200)


def good_token_is_accepted(call, secret):
    call("GET", "/instances", Authorization="Bearer " + token(secret, claims())).must(200)


def bad_tokens_are_401(call, secret):
    good = token(secret, claims())
    bad = {
        "unsigned": token(secret, claims(), algorithm="none"),
        "of another secret": token(secret + "x", claims()),
        "expired": token(secret, claims(exp=int(time.time()) - 3600)),
        "not valid yet": token(secret, claims(nbf=int(time.time()) + 3600)),
        "of another algorithm": token(secret, claims(), algorithm="HS512"),
        "without a signature": good.rsplit(".", 1)[0] + ".",
        "with other claims": ".".join([good.split(".")[0], token(secret, claims(sub="root")).split(".")[1], good.split(".")[2]]),
        "no token": "nonsense",
    }
    for what, text in bad.items():
        answer = call("GET", "/instances", Authorization="Bearer " + text)
        assert answer.status == 401, f"a token {what}: {answer.status}"
    call("GET", "/instances", Authorization="Basic dXNlcjpwYXNz").must_be_problem(401)


OPEN = [
    documents_are_one_and_parse,
    reference_page_needs_nothing_from_elsewhere,
    health_is_ok,
    readiness_answers,
    metrics_are_what_prometheus_reads,
    unknown_path_is_404_problem,
    unknown_instance_and_image_are_404_problems,
    wrong_method_is_405_with_allow,
    unknown_query_is_400,
    malformed_bodies_are_400_and_other_kinds_415,
    missing_image_is_404_and_says_what_to_do,
    foreign_host_is_refused,
    foreign_origin_is_refused,
    registries_elsewhere_are_refused,
    unserved_routes_say_so,
    create_example_works_as_printed,
    idempotency_key_answers_once,
    lists_validate_and_come_in_pages,
]
SECRET = [
    no_token_is_401,
    health_and_documents_need_no_token,
    good_token_is_accepted,
    bad_tokens_are_401,
]


def main():
    call = Client(sys.argv[1])
    secret = sys.argv[3] if sys.argv[2:3] == ["--secret"] else None
    failed = 0
    for test in OPEN if secret is None else SECRET:
        name = "http-" + test.__name__.replace("_", "-")
        try:
            test(call) if secret is None else test(call, secret)
            print("PASS", name)
        except Exception:
            failed += 1
            print("FAIL", name)
            print("    " + traceback.format_exc(limit=3).replace("\n", "\n    "))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
