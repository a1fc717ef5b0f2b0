//! Use cases, HTTP handlers, placement and garbage collection.
