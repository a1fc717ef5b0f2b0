//! The side of the user: use cases, HTTP, gRPC, authentication and what is promised on a host. It writes
//! intent, in guarded transactions, and reads observations; it never touches a process, a file of an
//! instance or a network device, and knows no host but through `HostLink`. Called by the binary:
//! [`App::start`], then [`serve`], [`serve_container_service`] and [`serve_ssh`].

pub mod app;
pub mod auth;
mod envelope;
mod gateway;
pub mod grpc;
mod guard;
pub mod http;
mod keys;
mod metrics;
pub mod records;
mod serve;
mod settings;

pub use app::{App, AppError};
pub use auth::Auth;
pub use gateway::serve_ssh;
pub use serve::{ServeError, serve, serve_container_service};
pub use settings::{ContainerService, Settings};
