//! One module a subject; each gives the rows it measured.

pub(crate) mod copies;
pub(crate) mod create;
pub(crate) mod crowd;
pub(crate) mod durable;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod list;
pub(crate) mod memory;
pub(crate) mod requests;
pub(crate) mod standby;
