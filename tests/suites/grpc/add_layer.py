#!/usr/bin/env python3
"""Adds files of this machine to the one image of an OCI layout, as a layer of their own, at the paths they have here.

Usage: add_layer.py LAYOUT PATH… (a path that is a symbolic link becomes what it leads to)
"""

import hashlib
import io
import json
import pathlib
import sys
import tarfile

layout = pathlib.Path(sys.argv[1])
blobs = layout / "blobs/sha256"


def put(data):
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}


def get(described):
    return json.loads((blobs / described["digest"].removeprefix("sha256:")).read_text())


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w", dereference=True) as tar:
    for path in sys.argv[2:]:
        tar.add(path, arcname=path.lstrip("/"))
index = json.loads((layout / "index.json").read_text())
manifest = get(index["manifests"][0])
config = get(manifest["config"])
added = put(layer.getvalue())
config["rootfs"]["diff_ids"].append(added["digest"])
manifest["config"].update(put(json.dumps(config).encode()))
manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", **added})
index["manifests"][0].update(put(json.dumps(manifest).encode()))
(layout / "index.json").write_text(json.dumps(index))
