//! The wire: REST schemas and OpenAPI, error codes, and the typed client.
