#!/usr/bin/env python3
"""The requirements of the OCI distribution specification (v1.1) on a registry, one PASS or FAIL a line.

Each check is named after its workflow (pull, push, discovery, management) and the endpoint (end-1 to end-14) or the
paragraph it is about. Nothing is here that a check before has left: every one pushes what it needs, into repositories of
its own.

Usage: workflows.py URL [--password TOKEN]
"""

import base64
import gzip
import hashlib
import http.client
import io
import json
import sys
import tarfile
import time
import traceback
import urllib.parse
import uuid

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCTETS = "application/octet-stream"

# The codes that a 4xx may carry ("Error Codes").
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}


def digest(data, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def must(self, *statuses):
        assert self.status in statuses, f"{statuses} wanted, got {self.status}: {self.body[:400]!r}"
        return self

    def refused(self, status, code=None):
        self.must(status)
        error = json.loads(self.body)["errors"][0]
        assert error["code"] in CODES, error
        assert code is None or error["code"] == code, error
        assert error["message"], error
        return self

    def header(self, name):
        value = self.headers.get(name)
        assert value is not None, f"no {name} in {dict(self.headers)}"
        return value

    def json(self):
        return json.loads(self.body)


class Registry:
    def __init__(self, url, password):
        self.address = urllib.parse.urlsplit(url)
        self.authorization = None
        if password:
            pair = base64.b64encode(f"anybody:{password}".encode()).decode()
            self.authorization = f"Basic {pair}"

    def __call__(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=60)
        try:
            headers = dict(headers or {})
            if self.authorization:
                headers.setdefault("Authorization", self.authorization)
            connection.request(method, path, body=body, headers=headers)
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        assert answer.headers.get("docker-distribution-api-version") == "registry/2.0"
        return answer


class Repository:
    """A repository that nobody else uses, and the ways to fill it."""

    def __init__(self, registry, name=None):
        self.call = registry
        self.name = name or f"workflows/{uuid.uuid4().hex[:12]}"
        self.base = f"/v2/{self.name}"

    def begin(self, query=""):
        answer = self.call("POST", f"{self.base}/blobs/uploads/{query}", headers={"Content-Length": "0"})
        return answer.must(202).header("location")

    def blob(self, data, algorithm="sha256"):
        named = digest(data, algorithm)
        location = self.begin()
        answer = self.call("PUT", with_query(location, digest=named), data, {"Content-Type": OCTETS})
        answer.must(201)
        return named

    def put(self, reference, document, media_type=MANIFEST, query=""):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        path = f"{self.base}/manifests/{reference or digest(data)}{query}"
        return data, self.call("PUT", path, data, {"Content-Type": media_type})

    def get(self, reference, method="GET"):
        return self.call(method, f"{self.base}/manifests/{reference}", headers={"Accept": f"{MANIFEST}, {INDEX}"})

    def image(self, text, **more):
        """The manifest of an image with one layer; what it names is pushed."""
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            entry = tarfile.TarInfo("file")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        packed = gzip.compress(plain.getvalue(), mtime=0)
        config = json.dumps({
            "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/file"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(plain.getvalue())]},
        }).encode()
        self.blob(config)
        self.blob(packed)
        return {
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
            "layers": [descriptor(LAYER, packed)], **more,
        }

    def artifact(self, kind, subject=None, **more):
        self.blob(b"{}")
        document = {
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": descriptor(EMPTY, b"{}"),
            "layers": [descriptor(EMPTY, b"{}")], **more,
        }
        if subject:
            document["subject"] = subject
        return document


def descriptor(media_type, data):
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def with_query(location, **query):
    return f"{location}{'&' if '?' in location else '?'}{urllib.parse.urlencode(query)}"


CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


# --- pull ---------------------------------------------------------------------------------------------------------


@check
def pull_end_1_support(registry):
    registry("GET", "/v2/").must(200)


@check
def pull_end_2_blobs(registry):
    repository = Repository(registry)
    data = b"the bytes of a blob"
    named = repository.blob(data)
    for method, body in (("GET", data), ("HEAD", b"")):
        answer = registry(method, f"{repository.base}/blobs/{named}").must(200)
        assert answer.body == body
        assert answer.header("docker-content-digest") == named
        assert answer.header("content-length") == str(len(data))
    absent = digest(b"absent")
    registry("GET", f"{repository.base}/blobs/{absent}").refused(404, "BLOB_UNKNOWN")
    assert registry("HEAD", f"{repository.base}/blobs/{absent}").must(404).body == b""
    registry("GET", f"{repository.base}/blobs/sha256:short").refused(400, "DIGEST_INVALID")


@check
def pull_end_2_ranges(registry):
    repository = Repository(registry)
    data = bytes(range(256)) * 8
    path = f"{repository.base}/blobs/{repository.blob(data)}"
    for asked, first, last in (("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047)):
        answer = registry("GET", path, headers={"Range": f"bytes={asked}"}).must(206)
        assert answer.body == data[first:last + 1]
        assert answer.header("content-range") == f"bytes {first}-{last}/2048"
    for asked in ("500-0", "5000-10000"):
        registry("GET", path, headers={"Range": f"bytes={asked}"}).must(416)


@check
def pull_end_3_manifests(registry):
    repository = Repository(registry)
    data, put = repository.put("v1", repository.image("pulled"))
    put.must(201)
    for reference in ("v1", digest(data)):
        for method, body in (("GET", data), ("HEAD", b"")):
            answer = repository.get(reference, method).must(200)
            assert answer.body == body
            assert answer.header("content-type") == MANIFEST
            assert answer.header("docker-content-digest") == digest(data)
            assert answer.header("content-length") == str(len(data))
    for absent in ("v2", ".no-tag", digest(b"absent")):
        repository.get(absent).refused(404, "MANIFEST_UNKNOWN")
        assert repository.get(absent, "HEAD").must(404).body == b""
    Repository(registry).get("v1").refused(404)


# --- push ---------------------------------------------------------------------------------------------------------


@check
def push_end_4a_and_6_post_then_put(registry):
    repository = Repository(registry)
    for data in (b"monolithic", b""):
        location = repository.begin()
        uuid.UUID(location.split("?")[0].rsplit("/", 1)[1])
        answer = registry("PUT", with_query(location, digest=digest(data)), data, {"Content-Type": OCTETS}).must(201)
        assert registry("GET", answer.header("location")).must(200).body == data


@check
def push_end_4b_single_post(registry):
    repository = Repository(registry)
    data = b"in one request"
    path = f"{repository.base}/blobs/uploads/?digest={digest(data)}"
    answer = registry("POST", path, data, {"Content-Type": OCTETS}).must(201)
    assert registry("GET", answer.header("location")).must(200).body == data


@check
def push_end_4c_other_algorithm(registry):
    repository = Repository(registry)
    data = b"under another kind of digest"
    named = digest(data, "sha512")
    location = repository.begin("?digest-algorithm=sha512")
    registry("PATCH", location, data, {"Content-Type": OCTETS}).must(202)
    registry("PUT", with_query(location, digest=named)).must(201)
    assert registry("GET", f"{repository.base}/blobs/{named}").must(200).body == data
    registry("POST", f"{repository.base}/blobs/uploads/?digest-algorithm=md5").refused(400, "DIGEST_INVALID")


@check
def push_end_5_chunks_in_order(registry):
    repository = Repository(registry)
    data = bytes(range(200)) * 40
    location = repository.begin()

    def patch(first, last):
        headers = {"Content-Type": OCTETS, "Content-Range": f"{first}-{last}"}
        return registry("PATCH", location, data[first:last + 1], headers)

    patch(3000, 4999).refused(416)
    answer = patch(0, 2999).must(202)
    assert answer.header("range") == "0-2999"
    location = answer.header("location")
    patch(0, 2999).refused(416)
    status = registry("GET", location).must(204)
    assert status.header("range") == "0-2999"
    location = patch(3000, 4999).must(202).header("location")
    last = {"Content-Type": OCTETS, "Content-Range": f"5000-{len(data) - 1}"}
    closing = with_query(location, digest=digest(data))
    registry("PUT", closing, data[:3000], {**last, "Content-Range": "0-2999"}).refused(416)
    answer = registry("PUT", closing, data[5000:], last).must(201)
    assert registry("GET", answer.header("location")).must(200).body == data
    registry("GET", location).refused(404, "BLOB_UPLOAD_UNKNOWN")


@check
def push_end_5_stream(registry):
    repository = Repository(registry)
    data = b"streamed " * 100_000
    location = repository.begin()
    answer = registry("PATCH", location, iter([data[:1000], data[1000:500_000], data[500_000:]]), {"Content-Type": OCTETS})
    location = answer.must(202).header("location")
    answer = registry("PUT", with_query(location, digest=digest(data))).must(201)
    assert registry("GET", answer.header("location")).must(200).body == data


@check
def push_wrong_digests_are_refused(registry):
    repository = Repository(registry)
    wrong = digest(b"promised")
    registry("POST", f"{repository.base}/blobs/uploads/?digest={wrong}", b"came").refused(400, "DIGEST_INVALID")
    location = repository.begin()
    registry("PUT", with_query(location, digest=wrong), b"came").refused(400, "DIGEST_INVALID")
    location = repository.begin()
    registry("PUT", with_query(location, digest="md5:00"), b"came").refused(400, "DIGEST_INVALID")
    registry("GET", f"{repository.base}/blobs/{wrong}").refused(404, "BLOB_UNKNOWN")


@check
def push_end_11_mount(registry):
    source, target = Repository(registry), Repository(registry)
    data = b"mounted " + target.name.encode()
    named = source.blob(data)
    registry("GET", f"{target.base}/blobs/{named}").refused(404)
    missing = registry("POST", f"{target.base}/blobs/uploads/?mount={digest(b'absent')}&from={source.name}").must(202)
    assert "/blobs/uploads/" in missing.header("location")
    for query in (f"mount={named}&from={source.name}", f"mount={named}"):
        answer = registry("POST", f"{target.base}/blobs/uploads/?{query}").must(201)
        assert registry("GET", answer.header("location")).must(200).body == data


@check
def push_end_13_and_14_status_and_cancel(registry):
    repository = Repository(registry)
    location = repository.begin()
    assert registry("GET", location).must(204).header("range").startswith("0-")
    registry("DELETE", location).must(204)
    registry("GET", location).refused(404, "BLOB_UPLOAD_UNKNOWN")


@check
def push_end_7a_manifests(registry):
    repository = Repository(registry)
    document = repository.image("pushed")
    spaced = json.dumps(document, indent=7).encode()
    for reference in ("latest", digest(spaced)):
        data, answer = repository.put(reference, spaced)
        answer.must(201)
        assert answer.header("docker-content-digest") == digest(data)
        assert registry("GET", answer.header("location")).must(200).body == spaced
    _, wrong = repository.put(digest(b"other"), spaced)
    wrong.refused(400, "DIGEST_INVALID")
    _, wrong = repository.put("sha256:baddigest", spaced)
    wrong.refused(400)
    _, wrong = repository.put("latest", b"no manifest")
    wrong.refused(400, "MANIFEST_INVALID")
    document["layers"][0]["digest"] = digest(b"never pushed")
    _, wrong = repository.put("latest", document)
    wrong.refused(404, "MANIFEST_BLOB_UNKNOWN")
    assert repository.get("latest").must(200).body == spaced


@check
def push_end_7a_size_limit(registry):
    repository = Repository(registry)
    document = repository.image("large", annotations={"fill": "x" * ((4 << 20) - 4096)})
    _, answer = repository.put("large", document)
    answer.must(201)
    document["annotations"]["fill"] += "x" * 4096
    _, answer = repository.put("larger", document)
    answer.refused(413)


@check
def push_end_7b_tag_parameters(registry):
    repository = Repository(registry)
    _, answer = repository.put(None, repository.image("tagged"), query="?tag=1.2.3&tag=1.2&tag=1&tag=latest")
    given = {tag.strip() for line in answer.must(201).headers.get_all("oci-tag") for tag in line.split(",")}
    assert given == {"1.2.3", "1.2", "1", "latest"}
    for tag in given:
        repository.get(tag).must(200)


@check
def push_indexes_and_what_does_not_run(registry):
    repository = Repository(registry)
    image = json.dumps(repository.image("one of several")).encode()
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, image)]}
    _, early = repository.put("multi", index, INDEX)
    early.refused(404, "MANIFEST_BLOB_UNKNOWN")
    repository.put(None, image)[1].must(201)
    data, answer = repository.put("multi", index, INDEX)
    answer.must(201)
    assert repository.get("multi").must(200).header("content-type") == INDEX
    nested = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, data)]}
    repository.put("nested", nested, INDEX)[1].must(201)
    repository.put("empty", {**nested, "manifests": []}, INDEX)[1].must(201)
    repository.put("artifact", repository.artifact("application/x.notes"))[1].must(201)
    kept_back = repository.image("with a layer that may not be distributed")
    kept_back["layers"].append({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": digest(b"elsewhere"), "size": 9, "urls": ["https://example.com/layer"],
    })
    repository.put("kept-back", kept_back)[1].must(201)


@check
def push_subject(registry):
    repository = Repository(registry)
    subject = descriptor(MANIFEST, b"a manifest that is not here")
    _, answer = repository.put("signature", repository.artifact("application/x.sig", subject))
    assert answer.must(201).header("oci-subject") == subject["digest"]


# --- content discovery ----------------------------------------------------------------------------------------------


@check
def discovery_end_8_tags(registry):
    repository = Repository(registry)
    document = repository.image("listed")
    tags = ["Zeta", "alpha", "beta", "v1", "v10", "v2"]
    for tag in reversed(tags):
        repository.put(tag, document)[1].must(201)
    listed = registry("GET", f"{repository.base}/tags/list").must(200).json()
    assert listed == {"name": repository.name, "tags": tags}, listed
    answer = registry("GET", f"{repository.base}/tags/list?n=4").must(200)
    assert answer.json()["tags"] == tags[:4]
    link = answer.header("link")
    assert link.endswith('; rel="next"')
    following = registry("GET", link[link.index("<") + 1:link.index(">")]).must(200)
    assert following.json()["tags"] == tags[4:]
    assert following.headers.get("link") is None
    after = registry("GET", f"{repository.base}/tags/list?last=alpha").must(200).json()["tags"]
    assert after == tags[2:]
    none = registry("GET", f"{repository.base}/tags/list?n=0").must(200)
    assert none.json()["tags"] == [] and none.headers.get("link") is None
    registry("GET", "/v2/nobody/pushed/this/tags/list").refused(404, "NAME_UNKNOWN")
    assert repository.name in registry("GET", "/v2/_catalog?n=10000").must(200).json()["repositories"]


@check
def discovery_end_12_referrers(registry):
    repository = Repository(registry)
    data, _ = repository.put("subject", repository.image("referred to"))
    path = f"{repository.base}/referrers/{digest(data)}"
    empty = registry("GET", path).must(200)
    assert empty.header("content-type") == INDEX
    assert empty.json() == {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    subject = descriptor(MANIFEST, data)
    sbom, _ = repository.put(None, repository.artifact("application/x.sbom", subject, annotations={"a": "b"}))
    config = repository.artifact(None, subject)
    del config["artifactType"]
    config["config"]["mediaType"] = "application/x.config"
    config, _ = repository.put(None, config)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject}
    index, answer = repository.put(None, index, INDEX)
    assert answer.must(201).header("oci-subject") == digest(data)
    found = {one["digest"]: one for one in registry("GET", path).must(200).json()["manifests"]}
    assert found.keys() == {digest(sbom), digest(config), digest(index)}
    assert found[digest(sbom)] == {
        "mediaType": MANIFEST, "digest": digest(sbom), "size": len(sbom), "artifactType": "application/x.sbom",
        "annotations": {"a": "b"},
    }
    assert found[digest(config)]["artifactType"] == "application/x.config"
    assert "artifactType" not in found[digest(index)]
    filtered = registry("GET", f"{path}?artifactType=application/x.sbom").must(200)
    assert filtered.header("oci-filters-applied") == "artifactType"
    assert [one["digest"] for one in filtered.json()["manifests"]] == [digest(sbom)]
    registry("GET", f"{repository.base}/referrers/{digest(b'absent')}").must(200)
    registry("GET", f"{repository.base}/referrers/latest").refused(400)
    registry("DELETE", f"{repository.base}/manifests/{digest(sbom)}").must(202)
    left = registry("GET", path).must(200).json()["manifests"]
    assert digest(sbom) not in [one["digest"] for one in left]


# --- content management ---------------------------------------------------------------------------------------------


@check
def management_end_9_tags(registry):
    repository = Repository(registry)
    data, _ = repository.put("one", repository.image("untagged"))
    repository.put("two", data)[1].must(201)
    registry("DELETE", f"{repository.base}/manifests/one").must(202)
    repository.get("one").refused(404, "MANIFEST_UNKNOWN")
    repository.get("two").must(200)
    repository.get(digest(data)).must(200)
    listed = registry("GET", f"{repository.base}/tags/list").must(200).json()["tags"]
    assert listed == ["two"]
    registry("DELETE", f"{repository.base}/manifests/one").refused(404)


@check
def management_end_9_manifests(registry):
    repository = Repository(registry)
    data, _ = repository.put("one", repository.image("deleted"))
    repository.put("two", data)[1].must(201)
    registry("DELETE", f"{repository.base}/manifests/{digest(data)}").must(202)
    for reference in ("one", "two", digest(data)):
        repository.get(reference).refused(404)
    registry("DELETE", f"{repository.base}/manifests/{digest(data)}").refused(404)
    registry("DELETE", f"/v2/nobody/pushed/this/manifests/{digest(data)}").refused(404)


@check
def management_end_10_blobs(registry):
    repository = Repository(registry)
    free = repository.blob(b"named by nothing " + repository.name.encode())
    registry("DELETE", f"{repository.base}/blobs/{free}").must(202)
    registry("GET", f"{repository.base}/blobs/{free}").refused(404)
    registry("DELETE", f"{repository.base}/blobs/{free}").refused(404, "BLOB_UNKNOWN")
    document = repository.image("needed " + repository.name)
    data, _ = repository.put("needed", document)
    layer = f"{repository.base}/blobs/{document['layers'][0]['digest']}"
    registry("DELETE", layer).refused(405, "UNSUPPORTED")
    registry("GET", layer).must(200)
    registry("DELETE", f"{repository.base}/manifests/{digest(data)}").must(202)
    registry("DELETE", layer).must(202)
    registry("GET", layer).refused(404)


# --- the rest -------------------------------------------------------------------------------------------------------


@check
def errors_and_names(registry):
    for name in ("UPPER", "a..b", "-a", "a_", "a/../b", "x" * 256):
        registry("GET", f"/v2/{name}/tags/list").refused(400, "NAME_INVALID")
    registry("PATCH", "/v2/").refused(405, "UNSUPPORTED")
    registry("GET", "/v2/no/such/thing").refused(404)


def main():
    url = sys.argv[1]
    password = sys.argv[3] if sys.argv[2:3] == ["--password"] else None
    registry = Registry(url, password)
    failures = 0
    if password:
        bare = Registry(url, None)("GET", "/v2/")
        bare.refused(401, "UNAUTHORIZED")
        assert bare.header("www-authenticate").startswith("Basic "), bare.header("www-authenticate")
    for one in CHECKS:
        name = "workflow-" + one.__name__.replace("_", "-")
        started = time.monotonic()
        try:
            one(registry)
        except Exception:  # pylint: disable=broad-except
            failures += 1
            print(f"FAIL {name} after {time.monotonic() - started:.1f} s")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"PASS {name}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
