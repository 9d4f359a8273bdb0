//! The vocabulary that the description is written in: one operation, its headers, its answers.

use serde_json::Value;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Required, Response, ResponseBuilder, Schema};
use waxwing_protocol::problem::PROBLEM_MEDIA_TYPE;

/// The largest number of a header, as tus and structured fields allow it.
const NUMBER_MAX: f64 = 999_999_999_999_999.0;

/// An operation under construction.
pub(super) struct Op {
    operation: OperationBuilder,
    request: Option<RequestBody>,
    /// The answer described last, with its status.
    answer: Option<(String, Response)>,
}

/// A value of a header or a query, and what it means.
pub(super) struct Kind {
    schema: Schema,
    meaning: String,
}

impl Kind {
    /// The same, one of `values`.
    pub(super) fn with_values(mut self, values: &[&str]) -> Self {
        if let Schema::Object(object) = &mut self.schema {
            object.enum_values = Some(values.iter().map(|value| Value::from(*value)).collect());
        }
        self
    }

    /// The same, matching `pattern`.
    pub(super) fn matching(mut self, pattern: &str) -> Self {
        if let Schema::Object(object) = &mut self.schema {
            object.pattern = Some(pattern.to_owned());
        }
        self
    }
}

/// Text.
pub(super) fn text(meaning: &str) -> Kind {
    Kind { schema: Schema::Object(Object::with_type(Type::String)), meaning: meaning.to_owned() }
}

/// A whole number from 0 on.
pub(super) fn integer(meaning: &str) -> Kind {
    Kind { schema: bytes(), meaning: meaning.to_owned() }
}

/// A boolean as structured fields write it.
pub(super) fn boolean(meaning: &str) -> Kind {
    text(meaning).with_values(&["?1", "?0"])
}

/// A dictionary of digests, RFC 9530.
pub(super) fn structured(meaning: &str) -> Kind {
    text(meaning).matching("^(sha-256|sha-512)=(:[A-Za-z0-9+/]{43}=:|[0-9])$")
}

/// A URL.
pub(super) fn url(meaning: &str) -> Kind {
    text(meaning)
}

/// A blob's id.
pub(super) fn blob_id(meaning: &str) -> Kind {
    Kind { schema: blob_id_schema(), meaning: meaning.to_owned() }
}

/// The schema of a number from 0 on.
pub(super) fn bytes() -> Schema {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0.0)).maximum(Some(NUMBER_MAX)).build().into()
}

/// The schema of a list of anything.
pub(super) fn list() -> Schema {
    ArrayBuilder::new().build().into()
}

/// The schema of a JSON object with these members, all of them there.
pub(super) fn json(members: Vec<(&str, Schema)>) -> Schema {
    let object = members.into_iter().fold(ObjectBuilder::new().schema_type(Type::Object), |object, (name, schema)| {
        object.property(name, schema).required(name)
    });
    object.build().into()
}

/// RFC 9457, with whatever members a problem adds.
pub(super) fn problem_schema() -> Schema {
    let text = || Object::with_type(Type::String);
    let status = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(400.0)).maximum(Some(599.0));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("type", text())
        .property("title", text())
        .property("status", status)
        .property("detail", text())
        .required("type")
        .required("title")
        .required("status")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .build()
        .into()
}

/// 52 characters of base32.
pub(super) fn blob_id_schema() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-z2-7]{51}[aq]$")).build().into()
}

/// 26 characters of base32.
pub(super) fn upload_id_schema() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-z2-7]{25}[aeimquy4]$")).build().into()
}

/// A grant shown as a bearer token.
pub(super) fn grant(about: &str) -> SecurityScheme {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(about));
    SecurityScheme::Http(bearer.build())
}

impl Op {
    pub(super) fn new(id: &str, summary: &str) -> Self {
        let operation = OperationBuilder::new().operation_id(Some(id)).summary(Some(summary));
        Self { operation, request: None, answer: None }
    }

    pub(super) fn about(self, description: &str) -> Self {
        Self { operation: self.operation.description(Some(description)), ..self }
    }

    /// Needs an upload grant.
    pub(super) fn upload_grant(self) -> Self {
        self.secured("upload")
    }

    /// Needs an edge's grant.
    pub(super) fn edge_grant(self) -> Self {
        self.secured("edge")
    }

    fn secured(self, scheme: &str) -> Self {
        let requirement = SecurityRequirement::new::<_, [&str; 0], &str>(scheme, []);
        Self { operation: self.operation.security(requirement), ..self }
    }

    pub(super) fn upload_path(self) -> Self {
        self.path("UploadId", "The upload.")
    }

    pub(super) fn blob_path(self) -> Self {
        self.path("BlobId", "The blob.")
    }

    fn path(self, schema: &str, meaning: &str) -> Self {
        let parameter = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(Ref::from_schema_name(schema)))
            .description(Some(meaning));
        Self { operation: self.operation.parameter(parameter), ..self }
    }

    pub(super) fn query(self, name: &str, kind: Kind) -> Self {
        self.parameter(name, kind, ParameterIn::Query, Required::False)
    }

    pub(super) fn header(self, name: &str, kind: Kind) -> Self {
        self.parameter(name, kind, ParameterIn::Header, Required::False)
    }

    pub(super) fn required_header(self, name: &str, kind: Kind) -> Self {
        self.parameter(name, kind, ParameterIn::Header, Required::True)
    }

    fn parameter(self, name: &str, kind: Kind, place: ParameterIn, required: Required) -> Self {
        let mut parameter = Parameter::new(name);
        parameter.parameter_in = place;
        parameter.required = required;
        parameter.schema = Some(RefOr::T(kind.schema));
        parameter.description = Some(kind.meaning);
        Self { operation: self.operation.parameter(parameter), ..self }
    }

    /// Takes bytes of one of these media types; none are fine too.
    pub(super) fn takes(mut self, media_types: &[&str]) -> Self {
        let request = self.request.get_or_insert_with(RequestBody::new);
        for media_type in media_types {
            request.content.insert((*media_type).to_owned(), RefOr::T(Content::new(Some(any_bytes()))));
        }
        self
    }

    /// Takes JSON of the form `schema`.
    pub(super) fn takes_json(mut self, schema: Schema) -> Self {
        let request = self.request.get_or_insert_with(RequestBody::new);
        request.content.insert("application/json".into(), RefOr::T(Content::new(Some(schema))));
        self
    }

    /// May be answered with `status` and these headers.
    pub(super) fn answer(mut self, status: &str, meaning: &str, headers: Vec<(&str, Kind)>) -> Self {
        self = self.with_answer();
        let response =
            headers.into_iter().fold(ResponseBuilder::new().description(meaning), |response, (name, kind)| {
                response.header(name, header(kind))
            });
        self.answer = Some((status.to_owned(), response.build()));
        self
    }

    /// The answer described last has content of the form `schema`, or none.
    pub(super) fn with(mut self, media_type: &str, schema: Schema) -> Self {
        if let Some((_, response)) = &mut self.answer {
            response.content.insert(media_type.to_owned(), RefOr::T(Content::new(Some(schema))));
        }
        self
    }

    /// The answer described last has bytes of one of these media types.
    pub(super) fn with_bytes(self, media_types: &[&str]) -> Self {
        media_types.iter().fold(self, |op, media_type| op.with(media_type, any_bytes()))
    }

    /// The answer described last names the blob in JSON, when there is one.
    pub(super) fn with_blob(self) -> Self {
        let blob = ObjectBuilder::new().schema_type(Type::Object).property("blob", Ref::from_schema_name("BlobId"));
        self.with("application/json", blob.build().into())
    }

    pub(super) fn build(self) -> Operation {
        let Self { operation, request, .. } = self.with_answer();
        let refused = |meaning: &str| {
            let problem = Content::new(Some(Ref::from_schema_name("Problem")));
            ResponseBuilder::new().description(meaning).content(PROBLEM_MEDIA_TYPE, problem).build()
        };
        operation
            .request_body(request)
            .response("4XX", refused("The request cannot be met as it is; `type` says why."))
            .response("5XX", refused("The server cannot meet it now; Retry-After says when to ask again."))
            .build()
    }

    fn with_answer(mut self) -> Self {
        if let Some((status, response)) = self.answer.take() {
            self.operation = self.operation.response(status, response);
        }
        self
    }
}

fn header(kind: Kind) -> Header {
    HeaderBuilder::new().schema(Some(kind.schema)).description(Some(kind.meaning)).build()
}

/// Bytes of any content: in OpenAPI 3.1 a schema that says nothing.
fn any_bytes() -> Schema {
    Schema::Object(ObjectBuilder::new().schema_type(SchemaType::AnyValue).build())
}
