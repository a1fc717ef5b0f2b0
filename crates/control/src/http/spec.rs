//! The OpenAPI document: what the handlers say of themselves, the routes that are not served yet, and
//! the problems every route can answer with.

use super::{served, unserved};
use axum::body::Bytes;
use serde_json::{Map, Value, json};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa::{PartialSchema, ToSchema};
use warren_api::Problem;
use warren_api::exec::{ExecControl, ExecExit, ExecStart, LogEntry};
use warren_core::image::ImageProgress;

/// Both forms, rendered once.
pub(crate) struct Rendered {
    pub(super) json: Bytes,
    pub(super) yaml: Bytes,
}

impl Rendered {
    pub(super) fn new() -> Self {
        let document = document();
        Rendered {
            json: serde_json::to_vec(&document).expect("a JSON value").into(),
            yaml: yaml(&document).into(),
        }
    }
}

/// The document as YAML, as it is committed.
fn yaml(document: &Value) -> String {
    serde_norway::to_string(document).expect("a JSON value is a YAML value")
}

pub(super) fn head() -> OpenApi {
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Warren")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "MicroVMs from OCI images. Errors are problem documents (RFC 9457) with a stable `code`.",
                ))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema(Problem::name(), Problem::schema())
                .schema("ErrorDetail", warren_api::ErrorDetail::schema())
                .schema("ExecStart", ExecStart::schema())
                .schema("ExecControl", ExecControl::schema())
                .schema("ExecExit", ExecExit::schema())
                .schema("TerminalSize", warren_api::exec::TerminalSize::schema())
                .schema("StdinControl", warren_api::exec::StdinControl::schema())
                .schema("CopyStart", warren_api::CopyStart::schema())
                .schema("CopyDirection", warren_api::CopyDirection::schema())
                .schema("CopyFormat", warren_api::CopyFormat::schema())
                .schema("CopyMessage", warren_api::CopyMessage::schema())
                .schema("CopyHeader", warren_api::CopyHeader::schema())
                .schema("CopyResult", warren_api::CopyResult::schema())
                .schema("LogEntry", LogEntry::schema())
                .schema("LogStream", warren_api::exec::LogStream::schema())
                .build(),
        ))
        .build()
}

/// The statuses of problems, in words.
const PROBLEMS: [(u16, &str, &str); 14] = [
    (400, "BadRequest", "The request can never work as it is"),
    (
        401,
        "Unauthorized",
        "No credential, or one that is not valid",
    ),
    (
        403,
        "Forbidden",
        "The credential or the place the request came from does not allow this",
    ),
    (404, "NotFound", "There is no such thing"),
    (
        405,
        "MethodNotAllowed",
        "The route does not take this method",
    ),
    (408, "TimedOut", "The request did not come in whole in time"),
    (
        409,
        "Conflict",
        "Something that exists stands in the way, or the wrong state",
    ),
    (413, "TooLarge", "The body is too large"),
    (415, "UnsupportedMediaType", "The body is of the wrong kind"),
    (
        429,
        "NoCapacity",
        "No room on the host, or too many at once",
    ),
    (
        500,
        "Internal",
        "A mistake of the server's; its log has the cause",
    ),
    (
        501,
        "NotImplemented",
        "Not served yet, or not possible on this host",
    ),
    (503, "Unavailable", "It may work a moment later"),
    (507, "DiskFull", "The disk is full"),
];

/// The whole document.
pub fn document() -> Value {
    let (_, openapi) = served().split_for_parts();
    let mut document = serde_json::to_value(openapi).expect("an OpenAPI document is JSON");
    // Kept here so that nobody believes a progress event is of another shape than the domain's.
    let _: fn(&ImageProgress) = |_| {};
    add_unserved(&mut document);
    let responses: Map<String, Value> = PROBLEMS
        .iter()
        .map(|(_, name, words)| {
            let response = json!({
                "description": words,
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Error" } } },
            });
            ((*name).to_owned(), response)
        })
        .collect();
    document["components"]["responses"] = Value::Object(responses);
    document["components"]["securitySchemes"] =
        json!({ "bearerAuth": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } });
    // Where JWT_SECRET is not set, nothing is needed.
    document["security"] = json!([{ "bearerAuth": [] }, {}]);
    bound_labels(&mut document);
    let paths = document["paths"].as_object_mut().expect("there are paths");
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().expect("a path has operations") {
            add_problems(path, method, operation);
            add_label_maps(path, method, operation);
        }
    }
    document
}

fn add_unserved(document: &mut Value) {
    for route in unserved::ROUTES {
        let mut parameters: Vec<Value> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        parameters.extend(route.query.iter().map(|name| {
            if *name == "tags" {
                tags_parameter()
            } else {
                json!({ "name": name, "in": "query", "required": false, "schema": { "type": "string" } })
            }
        }));
        document["paths"][route.path][route.verb.to_lowercase()] = json!({
            "tags": ["not served yet"],
            "operationId": route.operation,
            "summary": format!("Not served yet: {}", route.what),
            "parameters": parameters,
            "responses": {},
        });
    }
}

fn tags_parameter() -> Value {
    json!({
        "name": "tags", "in": "query", "required": false, "style": "deepObject", "explode": true,
        "description": "Only with these labels, as tags[key]=value",
        "schema": {
            "type": "object",
            "propertyNames": { "minLength": 1, "pattern": r"^[^\[\]]*$" },
            "additionalProperties": { "type": "string" },
        },
    })
}

/// What `warren_api::convert::check_tags` accepts, wherever labels are sent or shown. Derived, they refer to a schema that
/// is called after the Rust type and accepts any text.
fn bound_labels(document: &mut Value) {
    let text = |low: usize, high: usize| {
        json!({
            "type": "string", "minLength": low, "maxLength": high,
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
        })
    };
    let schemas = document["components"]["schemas"]
        .as_object_mut()
        .expect("there are schemas");
    schemas.remove("BTreeMap");
    for schema in schemas.values_mut() {
        for name in ["tags", "labels"] {
            if let Some(labels) = schema.pointer_mut(&format!("/properties/{name}")) {
                labels["$ref"] = json!("#/components/schemas/Labels");
            }
        }
    }
    schemas.insert(
        "Labels".to_owned(),
        json!({
            "type": "object", "maxProperties": 64,
            "propertyNames": text(1, 128), "additionalProperties": text(0, 512),
        }),
    );
}

fn add_label_maps(path: &str, method: &str, operation: &mut Value) {
    if method == "get"
        && (path == "/instances" || path == "/images")
        && let Some(parameters) = operation["parameters"].as_array_mut()
    {
        for parameter in parameters.iter_mut().filter(|p| p["name"] == "labels") {
            parameter["schema"]["items"]["pattern"] = json!("^[^=]+=");
        }
        parameters.push(tags_parameter());
    }
}

fn add_problems(path: &str, method: &str, operation: &mut Value) {
    let is_unserved = operation["tags"][0] == "not served yet";
    let public = operation["security"].is_array();
    let names_one = path.contains('{');
    let has_body = operation.get("requestBody").is_some();
    let changes = method != "get";
    let host = !public && path != "/docs" && path != "/metrics";
    let given = |status: u16| match status {
        400 | 403 | 500 => true,
        401 => !public,
        404 => names_one || path == "/instances",
        409 => names_one || changes,
        408 | 413 | 415 => has_body,
        429 | 507 => changes && !is_unserved,
        501 => is_unserved || host,
        503 => host,
        _ => false,
    };
    let responses = operation["responses"]
        .as_object_mut()
        .expect("an operation has responses");
    for (status, name, _) in PROBLEMS {
        if given(status) {
            let problem = json!({ "$ref": format!("#/components/responses/{name}") });
            match responses.get_mut(&status.to_string()) {
                None => {
                    responses.insert(status.to_string(), problem);
                }
                Some(own) => {
                    own["content"]["application/problem+json"] =
                        json!({ "schema": { "$ref": "#/components/schemas/Error" } });
                }
            }
        }
    }
    responses.insert(
        "default".to_owned(),
        json!({
            "description": "Any other problem",
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Error" } } },
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The committed document is what the code serves. `UPDATE_OPENAPI=1` writes it anew.
    #[test]
    fn the_committed_openapi_document_is_the_served_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.yaml");
        let served = yaml(&document());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &served).expect("docs can be written");
        }
        let committed = std::fs::read_to_string(path).expect("docs/openapi.yaml is committed");
        assert!(
            committed == served,
            "docs/openapi.yaml is not what the code serves: run the tests with UPDATE_OPENAPI=1"
        );
    }

    #[test]
    fn operations_have_ids_of_their_own_and_references_lead_somewhere() {
        let document = document();
        let mut ids = BTreeSet::new();
        for item in document["paths"].as_object().expect("paths").values() {
            for operation in item.as_object().expect("operations").values() {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id.to_owned()), "{id} twice");
            }
        }
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().expect("a string");
            assert!(
                document.pointer(pointer).is_some(),
                "{pointer} leads nowhere"
            );
        }
    }
}
