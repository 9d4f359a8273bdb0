//! What this node speaks, for programs: `/v1/messaging/openapi.json` and `/v1/asyncapi.json`.
//!
//! Two documents, since there are two ways to speak: requests with an answer each, and frames both ways. The origin has an
//! OpenAPI document of its own at `/v1/openapi.json`: the roles of a service can be on different hosts, and each describes
//! what it answers.

mod openapi;

use std::sync::LazyLock;

use axum::response::{IntoResponse as _, Response};
use http::header;
use waxwing_protocol::frames::ASYNCAPI;

/// The description as JSON text; the same for everyone.
static OPENAPI: LazyLock<String> = LazyLock::new(|| openapi::document().to_string());

/// `GET /v1/messaging/openapi.json`.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI.as_str()).into_response()
}

/// `GET /v1/asyncapi.json`.
pub(crate) async fn asyncapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], ASYNCAPI).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// A route that is added is described, and what is described is there.
    #[test]
    fn every_route_is_described_and_nothing_else() {
        let source = include_str!("../http.rs");
        let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split_once('"'));
        let routes: BTreeSet<_> = routes.map(|(path, _)| path.to_owned()).collect();
        let document = super::openapi::document();
        let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_whether_it_needs_a_token() {
        let document = super::openapi::document();
        let paths = document["paths"].as_object().unwrap().values();
        let operations: Vec<_> = paths.flat_map(|item| item.as_object().unwrap().values()).collect();
        let names: BTreeSet<_> = operations.iter().map(|it| it["operationId"].as_str().unwrap()).collect();
        assert_eq!(names.len(), operations.len());
        assert!(operations.iter().all(|it| it["security"].is_array()));
        assert!(document["components"]["schemas"]["Problem"].is_object());
    }
}
