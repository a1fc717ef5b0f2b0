"""What is on the wire, held against `wire-shape`: the methods, field numbers and types that clients were built with."""

import pathlib
import re

from google.protobuf.descriptor import FieldDescriptor

NAMES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def kind(field):
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        parts = field.message_type.fields_by_name
        return f"map<{kind(parts['key'])}, {kind(parts['value'])}>"
    name = field.message_type.name if field.message_type is not None else NAMES[field.type]
    return f"repeated {name}" if field.is_repeated else name


def method(service, one):
    answer = ("stream " if one.server_streaming else "") + one.output_type.name
    assert not one.client_streaming, one.name
    return f"rpc {service.name}.{one.name}({one.input_type.name}) -> {answer}"


def message(one):
    fields = sorted(one.fields, key=lambda field: field.number)
    return f"message {one.name}: " + ", ".join(f"{f.number} {f.name}:{kind(f)}" for f in fields)


def wanted():
    return (pathlib.Path(__file__).parent / "wire-shape").read_text().splitlines()


def must_be_as_it_was(server):
    service = server.pool.FindServiceByName("container.ContainerService")
    served = [method(service, one) for one in service.methods]
    names = re.findall(r"^message (\w+):", "\n".join(wanted()), re.M)
    served += [message(server.pool.FindMessageTypeByName(f"container.{name}")) for name in names]
    missing = [line for line in wanted() if line not in served]
    added = [line for line in served if line not in wanted()]
    assert not missing and not added, f"wanted {missing}, served {added}"
    assert len(served) > 40, len(served)
