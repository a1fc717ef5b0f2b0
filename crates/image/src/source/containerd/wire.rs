//! As much of containerd's gRPC API as reading images takes (containerd `api/services/{images,content,namespaces}/v1`,
//! `api/types/descriptor.proto`). Fields that are not needed are not here: protobuf skips them.

/// Which part of what containerd holds a request is about.
pub(super) const NAMESPACE: &str = "containerd-namespace";

pub(super) const LIST_NAMESPACES: &str = "/containerd.services.namespaces.v1.Namespaces/List";
pub(super) const GET_IMAGE: &str = "/containerd.services.images.v1.Images/Get";
pub(super) const CONTENT_INFO: &str = "/containerd.services.content.v1.Content/Info";
pub(super) const READ_CONTENT: &str = "/containerd.services.content.v1.Content/Read";

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListNamespaces {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Namespaces {
    #[prost(message, repeated, tag = "1")]
    pub(super) namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Namespace {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetImage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GotImage {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Image {
    #[prost(message, optional, tag = "3")]
    pub(super) target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Descriptor {
    #[prost(string, tag = "2")]
    pub(super) digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContentInfo {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GotContentInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Info {
    #[prost(int64, tag = "2")]
    pub(super) size: i64,
}

/// All of it: offset and size are left at zero.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReadContent {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Content {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: bytes::Bytes,
}
