//! The description of the frames for programs: AsyncAPI 3, written by the build script from the schema itself.
//!
//! Whoever writes a client without our code reads a description, and one that is kept by hand is wrong after the first
//! new field. This one has every message, field and comment of `waxwing.v1.proto`, in the JSON mapping that the
//! subprotocol `waxwing.v1.json` speaks, with the numbers that protobuf needs beside them. Which way a frame goes is told
//! by the headings among the schema's frames, which answer it gets by the table below; a frame that is in neither stops
//! the build.

use std::collections::BTreeMap;
use std::error::Error;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use serde_json::{Map, Value, json};

/// The frame that holds all others.
const FRAME: &str = "Frame";

/// What answers each frame of a client that has an id; `Error` can always. Frames of clients that are missing here get
/// none.
const ANSWERS: [(&str, &str); 9] = [
    ("hello", "welcome"),
    ("send", "send_result"),
    ("presence_set", "ok"),
    ("presence_sub", "ok"),
    ("ephemeral", "error"),
    ("refresh", "ok"),
    ("read_mark", "ok"),
    ("channel_sub", "channel_state"),
    ("ping", "pong"),
];

/// Headings among the frames of the schema, and whether a client sends and receives what follows.
const HEADINGS: [(&str, Way); 3] =
    [("Client to server", Way::ToServer), ("Both ways", Way::Both), ("Server to client", Way::ToClient)];

/// Who sends a frame.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    ToServer,
    Both,
    ToClient,
}

const ABOUT: &str = "Frames between a device and its mailbox, over WebSocket or polls. A WebSocket message of the \
    subprotocol waxwing.v1.json is text: one frame a line, as described here. One of waxwing.v1.pb is binary: one or more \
    frames as protobuf, each after its length as a varint; x-protobuf has the numbers. A poll's body is the same, as \
    application/vnd.waxwing.v1.json or application/vnd.waxwing.v1.pb. The first frame of a connection, and of each poll, \
    is hello. The device token travels as bearer in the Authorization header, or where none can be set in hello. Frames \
    with an id are answered by exactly one frame with that id. The service closes with 1000 after bye, 1002 and 1007 for \
    what is not WebSocket, 4400 for what is not frames, 4401 without a valid token, 4403 when refused, 4408 after silence, \
    4409 when a newer connection of the device came, 4413 over a limit of size, 4429 too often, 4503 when it goes away, \
    4508 when the client reads too slowly; a poll has the code in Waxwing-Close.";

/// The document.
pub(crate) fn document(file: &FileDescriptorProto) -> Result<Value, Box<dyn Error>> {
    let schema = Schema::of(file);
    let frame = file.message_type.iter().position(|it| it.name() == FRAME).ok_or("the schema has no Frame")?;
    let envelope = &file.message_type[frame];
    let (mut messages, mut operations, mut way) = (Map::new(), Map::new(), None);
    for (at, field) in envelope.field.iter().enumerate() {
        if field.oneof_index.is_none() || field.proto3_optional() {
            continue;
        }
        let heading = schema.comment(&[4, index(frame)?, 2, index(at)?]);
        let announced = HEADINGS.iter().find(|(words, _)| heading.starts_with(words)).map(|(_, way)| *way);
        way = announced.or(way);
        let way = way.ok_or_else(|| format!("whose frame is {}?", field.name()))?;
        messages.insert(field.name().to_owned(), message(&schema, envelope, frame, field)?);
        operations.extend(operations_of(field, way));
    }
    let in_channel = |channel: &str| -> Value {
        let refs = messages.keys().map(|name| (name.clone(), json!({"$ref": format!("#/components/messages/{name}")})));
        json!({"address": channel, "messages": refs.collect::<Map<_, _>>()})
    };
    let mut socket = in_channel("/v1/ws");
    socket["title"] = json!("A WebSocket");
    socket["bindings"] = json!({"ws": {
        "method": "GET",
        "headers": {"type": "object", "required": ["Sec-WebSocket-Protocol"], "properties": {
            "Sec-WebSocket-Protocol": {"type": "string", "enum": ["waxwing.v1.pb", "waxwing.v1.json"]},
            "Authorization": {"type": "string", "description": "Bearer and the device token."},
        }},
        "bindingVersion": "0.1.0",
    }});
    let mut poll = in_channel("/v1/poll");
    poll["title"] = json!("A poll");
    poll["description"] = json!(
        "POST: frames in, hello first; frames out as soon as there is something to tell, or after 25 seconds. What was \
         stored is acked by `have` of the next hello."
    );
    Ok(json!({
        "asyncapi": "3.0.0",
        "id": "urn:waxwing:v1:frames",
        "info": {
            "title": "Waxwing messaging",
            "version": "1.0.0",
            "description": ABOUT,
            "license": {"name": "MIT OR Apache-2.0"},
            "tags": [{"name": "messaging"}],
        },
        "defaultContentType": "application/vnd.waxwing.v1.json",
        "servers": {"service": {
            "host": "{host}",
            "protocol": "wss",
            "description": "socket_url of GET /v1/info.",
            "variables": {"host": {"default": "localhost", "description": "Where the service is."}},
            "security": [{"$ref": "#/components/securitySchemes/device"}],
        }},
        "channels": {"socket": socket, "poll": poll},
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": schema.schemas()?,
            "securitySchemes": {"device": {
                "type": "http",
                "scheme": "bearer",
                "description": "The device token that was made at registration.",
            }},
        },
    }))
}

/// A frame as a message of AsyncAPI: the envelope with this body alone.
fn message(
    schema: &Schema<'_>,
    envelope: &DescriptorProto,
    frame: usize,
    body: &FieldDescriptorProto,
) -> Result<Value, Box<dyn Error>> {
    let mut properties = Map::new();
    for (at, field) in envelope.field.iter().enumerate().filter(|(_, field)| field.oneof_index.is_none()) {
        let comment = schema.comment(&[4, index(frame)?, 2, index(at)?]);
        properties.insert(json_name(field), property(field, &comment));
    }
    properties.insert(json_name(body), property(body, ""));
    let name = type_name(body);
    Ok(json!({
        "name": body.name(),
        "title": name,
        "summary": schema.comment_of(&name),
        "payload": {"type": "object", "properties": properties, "required": [json_name(body)]},
        "x-protobuf": {"number": body.number()},
    }))
}

/// What the service does with a frame: it receives it, and may answer, or sends it.
fn operations_of(field: &FieldDescriptorProto, way: Way) -> Vec<(String, Value)> {
    let name = field.name();
    let in_socket = |name: &str| json!({"$ref": format!("#/channels/socket/messages/{name}")});
    let channel = json!({"$ref": "#/channels/socket"});
    let mut operations = Vec::new();
    if way != Way::ToClient {
        let mut operation = json!({
            "action": "receive", "channel": channel, "messages": [in_socket(name)],
            "summary": format!("A client sends {name}."),
        });
        if let Some((_, answer)) = ANSWERS.iter().find(|(asked, _)| *asked == name) {
            let mut answers = vec![in_socket(answer)];
            if *answer != "error" {
                answers.push(in_socket("error"));
            }
            operation["reply"] = json!({"channel": channel, "messages": answers});
        }
        operations.push((format!("receive_{name}"), operation));
    }
    if way != Way::ToServer {
        let summary = format!("The service sends {name}.");
        let operation =
            json!({"action": "send", "channel": channel, "messages": [in_socket(name)], "summary": summary});
        operations.push((format!("send_{name}"), operation));
    }
    operations
}

/// The schema's messages and enums with their comments.
struct Schema<'a> {
    file: &'a FileDescriptorProto,
    comments: BTreeMap<&'a [i32], &'a str>,
}

impl<'a> Schema<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let comments = locations.filter_map(|it| Some((&it.path[..], it.leading_comments.as_deref()?)));
        Self { file, comments: comments.collect() }
    }

    /// The comment before an element, as one line.
    fn comment(&self, path: &[i32]) -> String {
        let lines = self.comments.get(path).into_iter().flat_map(|text| text.lines()).map(str::trim);
        lines.collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    /// The comment before a message.
    fn comment_of(&self, name: &str) -> String {
        let at = self.file.message_type.iter().position(|it| it.name() == name);
        at.and_then(|at| i32::try_from(at).ok()).map(|at| self.comment(&[4, at])).unwrap_or_default()
    }

    fn schemas(&self) -> Result<Map<String, Value>, Box<dyn Error>> {
        let mut schemas = Map::new();
        for (at, message) in self.file.message_type.iter().enumerate().filter(|(_, it)| it.name() != FRAME) {
            schemas.insert(message.name().to_owned(), self.object(index(at)?, message)?);
        }
        for (at, names) in self.file.enum_type.iter().enumerate() {
            schemas.insert(names.name().to_owned(), self.names(index(at)?, names)?);
        }
        Ok(schemas)
    }

    fn object(&self, at: i32, message: &DescriptorProto) -> Result<Value, Box<dyn Error>> {
        let mut properties = Map::new();
        for (number, field) in message.field.iter().enumerate() {
            let comment = self.comment(&[4, at, 2, index(number)?]);
            properties.insert(json_name(field), property(field, &comment));
        }
        Ok(json!({"type": "object", "description": self.comment(&[4, at]), "properties": properties}))
    }

    fn names(&self, at: i32, names: &EnumDescriptorProto) -> Result<Value, Box<dyn Error>> {
        let (mut known, mut numbers, mut meanings) = (Vec::new(), Map::new(), Vec::new());
        for (number, value) in names.value.iter().enumerate() {
            known.push(value.name());
            numbers.insert(value.name().to_owned(), json!(value.number()));
            meanings.push(format!("{}: {}", value.name(), self.comment(&[5, at, 2, index(number)?])));
        }
        let about = format!("{} {}", self.comment(&[5, at]), meanings.join(" "));
        Ok(json!({"type": "string", "enum": known, "description": about, "x-protobuf": {"numbers": numbers}}))
    }
}

/// A field in the JSON mapping of protobuf. What has its default may be left out, so nothing is required.
fn property(field: &FieldDescriptorProto, comment: &str) -> Value {
    let mut value = match field.r#type() {
        Type::Message | Type::Enum => json!({"$ref": format!("#/components/schemas/{}", type_name(field))}),
        Type::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::String => json!({"type": "string"}),
        // Numbers of 64 bits are written as text, since JavaScript has none.
        Type::Uint64 | Type::Int64 | Type::Fixed64 | Type::Sfixed64 | Type::Sint64 => {
            json!({"type": "string", "pattern": "^-?[0-9]{1,20}$"})
        }
        Type::Double | Type::Float => json!({"type": "number"}),
        _ => json!({"type": "integer"}),
    };
    if field.label() == Label::Repeated {
        value = json!({"type": "array", "items": value});
    }
    // Beside a reference nothing else may stand.
    if value.get("$ref").is_some() {
        value = json!({"allOf": [value]});
    }
    if !comment.is_empty() {
        value["description"] = json!(comment);
    }
    value["x-protobuf"] = json!({"number": field.number(), "name": field.name()});
    value
}

fn json_name(field: &FieldDescriptorProto) -> String {
    let mut upper = false;
    let camel = field.name().chars().filter_map(|letter| {
        if letter == '_' {
            upper = true;
            return None;
        }
        Some(if std::mem::take(&mut upper) { letter.to_ascii_uppercase() } else { letter })
    });
    camel.collect()
}

/// The name of a field's type, without its package.
fn type_name(field: &FieldDescriptorProto) -> String {
    field.type_name().rsplit('.').next().unwrap_or_default().to_owned()
}

fn index(at: usize) -> Result<i32, std::num::TryFromIntError> {
    i32::try_from(at)
}
