"""A client that knows nothing: every message and method comes from the server's own reflection."""

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "container.ContainerService"
# As large as the service takes; grpcio's own limit is 4 MB.
LARGEST = 100 << 20


class Server:
    def __init__(self, address, token=None):
        self.channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", LARGEST + (1 << 20)),
                ("grpc.max_send_message_length", LARGEST + (64 << 20)),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def close(self):
        self.channel.close()

    def services(self):
        return list(self.database.get_services())

    def methods(self, service=SERVICE):
        return self.pool.FindServiceByName(service).methods_by_name

    def message(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def find(self, method):
        service, _, name = method.replace("/", ".").rpartition(".")
        service = service or SERVICE
        return service, self.methods(service)[name]

    def invoke(self, method, request, timeout=60, metadata=None):
        """The call of a method, SERVICE's unless it is named in full: an answer's future, or a stream."""
        service, descriptor = self.find(method)
        name = descriptor.name
        message = message_factory.GetMessageClass(descriptor.input_type)()
        if isinstance(request, dict):
            json_format.ParseDict(request, message)
        else:
            message = request
        make = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        call = make(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
        )
        metadata = self.metadata if metadata is None else metadata
        if descriptor.server_streaming:
            return call(message, timeout=timeout, metadata=metadata)
        return call.future(message, timeout=timeout, metadata=metadata)

    def call(self, method, request=None, **options):
        """The answer of a method that has one."""
        return self.invoke(method, request or {}, **options).result()

    def call_all(self, method, request=None, **options):
        """All answers of a method that has several."""
        return list(self.invoke(method, request or {}, **options))

    def refused(self, code, method, request=None, word="", **options):
        """Must fail with this code; the sentence must have this word. Its end is returned."""
        try:
            call = self.invoke(method, request or {}, **options)
            answer = list(call) if self.find(method)[1].server_streaming else call.result()
        except grpc.RpcError as error:
            assert error.code() == code, f"{code} wanted, got {error.code()}: {error.details()}"
            assert error.details(), f"{code} without a word"
            assert word in error.details(), f"no {word!r} in {error.details()!r}"
            return error
        raise AssertionError(f"{method} of {request} answered: {str(answer)[:300]}")

    def reflect(self, version, request):
        """One question to reflection of this version; both versions have the same messages."""
        call = self.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        return next(call(iter([request]), timeout=20))
