//! The one binary: wiring, CLI, configuration, logging.
fn main() {}
