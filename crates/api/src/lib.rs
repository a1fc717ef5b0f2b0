//! The wire: REST schemas, stable error codes, conversions to and from the domain, and the typed
//! client. `control` serves these types, the CLI and other programs call through [`client::Client`].
//! It never decides anything about an instance: that is `core`'s and `control`'s.

pub mod client;
pub mod code;
pub mod convert;
pub mod copy;
pub mod event;
pub mod exec;
pub mod image;
pub mod instance;
pub mod operation;
pub mod policy;
pub mod problem;
pub mod push;
pub mod resources;
pub mod sse;
pub mod ssh;
pub mod stats;
pub mod storage;
pub mod upkeep;

pub use code::Code;
pub use copy::{CopyDirection, CopyFormat, CopyHeader, CopyMessage, CopyResult, CopyStart};
pub use event::{Event, EventType};
pub use exec::{
    DetachedExec, DetachedExecStart, DetachedExecState, ExecControl, ExecExit, ExecStart, LogEntry,
};
pub use image::{
    ArchiveFormat, CommitInstanceRequest, CreateImageRequest, Image, ImageStatus, PushCredentials,
    SaveImagesRequest,
};
pub use instance::{
    CreateInstanceRequest, Hypervisor, Instance, InstanceState, StandbyInstanceRequest,
    StartInstanceRequest, UpdateInstanceRequest, WaitForStateResponse,
};
pub use operation::{Operation, OperationKind, OperationPhase, OperationState};
pub use policy::{RestartPolicy, RestartStatus};
pub use problem::{ErrorDetail, Problem};
pub use resources::{Health, PathInfo, Readiness, Resources};
pub use ssh::SshHostKey;
pub use stats::{GuestStats, InstanceStats};
