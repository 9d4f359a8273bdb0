//! The HTTP interface of messaging as OpenAPI 3.1.
//!
//! It stands here in one piece, in the order in which a client comes by it. `tests/clients` lets schemathesis make
//! requests of it, valid and not, and holds the answers against what is said here.

use serde_json::{Map, Value, json};

const ABOUT: &str = "Accounts, their devices, the key directory, grants, and the doors to the frames (`/v1/ws` and \
    `/v1/poll`, described by /v1/asyncapi.json). The origin's uploads are in a document of its own, /v1/openapi.json. Who \
    asks shows a device token as bearer. Errors are problems, RFC 9457: match on `type`. Keys, signatures and sealed bytes \
    are base64; times are milliseconds since 1970.";

/// The document.
pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Waxwing messaging",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"device": {
                "type": "http",
                "scheme": "bearer",
                "description": "A device token: `<account>.<device>.<secret>`. Its hash is given at registration.",
            }},
        },
    })
}

fn paths() -> Value {
    let operations = [
        (
            "/v1/register",
            "post",
            Op::new("register", "A new account with its first device")
                .open()
                .takes("RegisterRequest")
                .gives("201", "RegisterResponse")
                .gives("200", "RegisterResponse"),
        ),
        (
            "/v1/accounts/{name}",
            "get",
            Op::new("viewAccount", "What one needs to write to somebody")
                .path("name", "A handle, or an account's id.")
                .gives("200", "AccountView"),
        ),
        ("/v1/account/handle", "put", Op::new("rename", "Another handle").takes("RenameRequest").gives_nothing()),
        (
            "/v1/account/delete",
            "post",
            Op::new("deleteAccount", "The end of the account").takes("DeleteRequest").gives_nothing(),
        ),
        ("/v1/devices", "get", Op::new("viewDevices", "The account's devices").gives("200", "DevicesView")),
        (
            "/v1/devices/link",
            "post",
            Op::new("linkDevice", "One more device")
                .takes("LinkRequest")
                .gives("201", "LinkResponse")
                .gives("200", "LinkResponse"),
        ),
        (
            "/v1/devices/{device}",
            "delete",
            Op::new("revokeDevice", "A device goes, with everything that waits for it")
                .path("device", "Its number.")
                .takes("RevokeRequest")
                .gives_nothing(),
        ),
        (
            "/v1/devices/{device}/name",
            "put",
            Op::new("nameDevice", "What its owner calls a device")
                .path("device", "Its number.")
                .takes("DeviceName")
                .gives_nothing(),
        ),
        (
            "/v1/links/{id}",
            "put",
            Op::new("offerLink", "What a device that wants to be linked offers")
                .open()
                .path("id", MEETING)
                .takes("Sealed")
                .gives_nothing(),
        ),
        (
            "/v1/links/{id}",
            "get",
            Op::new("offeredLink", "What was offered").path("id", MEETING).gives("200", "Sealed"),
        ),
        (
            "/v1/links/{id}/answer",
            "put",
            Op::new("answerLink", "The answer to it").path("id", MEETING).takes("Sealed").gives_nothing(),
        ),
        (
            "/v1/links/{id}/answer",
            "get",
            Op::new("answeredLink", "The answer, waited for as long as a poll waits")
                .open()
                .path("id", MEETING)
                .gives("200", "Sealed")
                .gives_nothing(),
        ),
        ("/v1/keys", "get", Op::new("countPrekeys", "What the directory holds").gives("200", "PrekeyCount")),
        (
            "/v1/keys",
            "put",
            Op::new("addPrekeys", "More prekeys of the calling device")
                .takes("PrekeyUpload")
                .gives("200", "PrekeyCount"),
        ),
        (
            "/v1/keys/check",
            "post",
            Op::new("checkKeys", "Whether the directory has what the device believes")
                .takes("KeysCheckRequest")
                .gives("200", "KeysCheck"),
        ),
        (
            "/v1/keys/{account}/{device}/claim",
            "post",
            Op::new("claimPrekey", "One prekey of somebody's device, which is used up")
                .path("account", "The account's id.")
                .path("device", "The device's number.")
                .gives("200", "PrekeyClaim"),
        ),
        (
            "/v1/grants",
            "post",
            Op::new("mintGrant", "A grant for the origin or the edges")
                .takes("GrantRequest")
                .gives("200", "GrantResponse"),
        ),
        (
            "/.well-known/jwks.json",
            "get",
            Op::new("grantKeys", "The keys that verify grants").open().gives("200", "Jwks"),
        ),
        ("/v1/groups", "get", Op::new("listGroups", "The groups that the account is in").gives("200", "GroupsView")),
        (
            "/v1/groups",
            "post",
            Op::new("foundGroup", "A new group, by its first change")
                .takes("SignedGroupChange")
                .gives("201", "GroupChanged")
                .gives("200", "GroupChanged"),
        ),
        (
            "/v1/groups/{id}/changes",
            "get",
            Op::new("groupChanges", "What members have changed since an epoch")
                .path("id", GROUP)
                .query("after", "The last epoch that is known.")
                .gives("200", "GroupChanges"),
        ),
        (
            "/v1/groups/{id}/changes",
            "post",
            Op::new("changeGroup", "A change, signed by the member who makes it")
                .path("id", GROUP)
                .takes("SignedGroupChange")
                .gives("201", "GroupChanged")
                .gives("200", "GroupChanged"),
        ),
        (
            "/v1/groups/{id}/states/{epoch}",
            "get",
            Op::new("groupState", "A group at an epoch, and what made it so")
                .path("id", GROUP)
                .path("epoch", "Which.")
                .gives("200", "GroupStateView"),
        ),
        (
            "/v1/groups/{id}/link",
            "post",
            Op::new("groupByLink", "What whoever has the link needs to come in")
                .path("id", GROUP)
                .takes("GroupLinkRequest")
                .gives("200", "GroupLinkView"),
        ),
        (
            "/v1/groups/{id}/devices",
            "post",
            Op::new("groupDevices", "Members' devices, where they changed")
                .path("id", GROUP)
                .takes("GroupDevicesRequest")
                .gives("200", "GroupDevicesView"),
        ),
        (
            "/v1/channels",
            "get",
            Op::new("listChannels", "The channels that the account owns or writes in").gives("200", "ChannelsView"),
        ),
        (
            "/v1/channels",
            "post",
            Op::new("foundChannel", "A new channel, by its first charter")
                .takes("SignedCharter")
                .gives("201", "ChannelChanged")
                .gives("200", "ChannelChanged"),
        ),
        (
            "/v1/channels/{id}",
            "get",
            Op::new("viewChannel", "Charters since an epoch, and how far the log is")
                .path("id", CHANNEL)
                .query("after", "The last epoch that is known.")
                .gives("200", "ChannelView"),
        ),
        (
            "/v1/channels/{id}/charters",
            "post",
            Op::new("charterChannel", "Who writes from here on, signed by the owner")
                .path("id", CHANNEL)
                .takes("SignedCharter")
                .gives("201", "ChannelChanged")
                .gives("200", "ChannelChanged"),
        ),
        (
            "/v1/channels/{id}/entries",
            "get",
            Op::new("channelEntries", "What was written behind an entry, as far as it is in no page")
                .path("id", CHANNEL)
                .query("after", "The last entry that is known.")
                .gives("200", "ChannelEntries"),
        ),
        (
            "/v1/channels/{id}/manifest",
            "get",
            Op::new("channelManifest", "The pages, which are blobs, of what was written behind an entry")
                .path("id", CHANNEL)
                .query("after", "The last entry that is known.")
                .gives("200", "ChannelManifest"),
        ),
        (
            "/v1/channels/{id}/pages",
            "post",
            Op::new("closeChannelPage", "A full page was put into the origin by an author")
                .path("id", CHANNEL)
                .takes("ChannelPage")
                .gives("201", "ChannelPage")
                .gives("200", "ChannelPage"),
        ),
        (
            "/v1/preferences",
            "get",
            Op::new("viewPreferences", "What the account lets others know").gives("200", "Preferences"),
        ),
        (
            "/v1/preferences",
            "put",
            Op::new("setPreferences", "What the account lets others know")
                .takes("Preferences")
                .gives("200", "Preferences"),
        ),
        ("/v1/blocks", "get", Op::new("listBlocks", "Whom the account hears nothing of").gives("200", "BlockList")),
        (
            "/v1/blocks/{account}",
            "put",
            Op::new("block", "To hear nothing of somebody").path("account", "The account's id.").gives_nothing(),
        ),
        (
            "/v1/blocks/{account}",
            "delete",
            Op::new("unblock", "To hear of somebody again").path("account", "The account's id.").gives_nothing(),
        ),
        ("/v1/push", "get", Op::new("viewPush", "Where the device is woken").gives("200", "PushView")),
        (
            "/v1/push",
            "put",
            Op::new("setPush", "Where to wake the device when it is away").takes("PushTarget").gives_nothing(),
        ),
        ("/v1/push", "delete", Op::new("removePush", "To be woken no more").gives_nothing()),
        ("/v1/push/test", "post", Op::new("testPush", "Wakes the device now").gives("200", "PushTest")),
        (
            "/v1/report",
            "post",
            Op::new("report", "Somebody whom the operator should look at").takes("ReportRequest").gives_nothing(),
        ),
        ("/v1/poll", "post", Op::new("poll", "Frames in and, as soon as there are any, frames out").poll()),
        (
            "/v1/ws",
            "get",
            Op::new("openSocket", "A WebSocket of the subprotocol waxwing.v1.pb or waxwing.v1.json")
                .says("101", "The frames begin."),
        ),
        (
            "/v1/asyncapi.json",
            "get",
            Op::new("describeFrames", "The frames for programs").open().gives("200", "Document"),
        ),
        (
            "/v1/messaging/openapi.json",
            "get",
            Op::new("describeRequests", "This document").open().gives("200", "Document"),
        ),
    ];
    let mut paths = Map::new();
    for (path, method, operation) in operations {
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method] = operation.build();
    }
    Value::Object(paths)
}

const GROUP: &str = "The group's id.";

const CHANNEL: &str = "The channel's id, a random UUID that nobody guesses.";

const MEETING: &str = "The meeting's name, derived from the code that a person carries.";

/// An operation under construction.
struct Op(Value);

impl Op {
    /// Needs a device token, unless it is [`Self::open`].
    fn new(id: &str, summary: &str) -> Self {
        Self(json!({
            "operationId": id, "summary": summary, "parameters": [], "responses": {}, "security": [{"device": []}],
        }))
    }

    fn open(mut self) -> Self {
        self.0["security"] = json!([]);
        self
    }

    fn path(mut self, name: &str, meaning: &str) -> Self {
        let parameter =
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}, "description": meaning});
        if let Some(parameters) = self.0["parameters"].as_array_mut() {
            parameters.push(parameter);
        }
        self
    }

    fn query(mut self, name: &str, meaning: &str) -> Self {
        let schema = json!({"type": "integer", "minimum": 0});
        let parameter = json!({"name": name, "in": "query", "schema": schema, "description": meaning});
        if let Some(parameters) = self.0["parameters"].as_array_mut() {
            parameters.push(parameter);
        }
        self
    }

    fn takes(mut self, schema: &str) -> Self {
        self.0["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}});
        self
    }

    fn gives(mut self, status: &str, schema: &str) -> Self {
        self.0["responses"][status] =
            json!({"description": schema, "content": {"application/json": {"schema": reference(schema)}}});
        self
    }

    fn gives_nothing(self) -> Self {
        self.says("204", "Done.")
    }

    fn says(mut self, status: &str, meaning: &str) -> Self {
        self.0["responses"][status] = json!({"description": meaning});
        self
    }

    /// Frames both ways. Whatever the status is, there are frames beside it, and the close code of a socket.
    fn poll(mut self) -> Self {
        let frames = || {
            json!({
                "application/vnd.waxwing.v1.pb": {"schema": {}},
                "application/vnd.waxwing.v1.json": {"schema": {}},
            })
        };
        self.0["requestBody"] = json!({"required": true, "content": frames()});
        let mut refused = frames();
        refused["application/problem+json"] = json!({"schema": reference("Problem")});
        let close = json!({"Waxwing-Close": {
            "description": "The code with which a socket would have been closed.", "schema": {"type": "integer"},
        }});
        self.0["responses"] = json!({
            "200": {"description": "Frames.", "headers": close, "content": frames()},
            "4XX": {"description": "Refused; frames say why.", "headers": close, "content": refused},
            "5XX": {"description": "Not now; Retry-After says when.", "headers": close, "content": refused},
        });
        self
    }

    fn build(mut self) -> Value {
        for (status, meaning) in [
            ("4XX", "The request cannot be met as it is; `type` says why."),
            ("5XX", "The service cannot meet it now; Retry-After says when to ask again."),
        ] {
            if self.0["responses"].get(status).is_none() {
                self.0["responses"][status] = json!({
                    "description": meaning,
                    "content": {"application/problem+json": {"schema": reference("Problem")}},
                });
            }
        }
        self.0
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let schemas = [
        (
            "Problem",
            json!({"type": "object", "required": ["type", "title", "status"], "properties": {
                "type": {"type": "string"}, "title": {"type": "string"}, "detail": {"type": "string"},
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
            }}),
        ),
        ("Document", json!({"type": "object"})),
        (
            "AccountId",
            json!({"type": "string", "format": "uuid",
            "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}),
        ),
        (
            "MsgId",
            json!({"type": "string", "format": "uuid",
            "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}),
        ),
        ("Handle", json!({"type": "string", "pattern": "^[a-z][a-z0-9._-]{1,31}$"})),
        ("DeviceId", json!({"type": "integer", "minimum": 1, "maximum": u32::MAX})),
        ("Time", json!({"type": "integer", "minimum": 0})),
        (
            "Bytes",
            json!({"type": "string", "contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}),
        ),
        (
            "Key",
            json!({"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$",
            "description": "32 bytes."}),
        ),
        ("SignedDeviceList", object(&[("list", "Bytes"), ("signature", "Bytes")], &[])),
        (
            "SignedPrekey",
            json!({"type": "object", "required": ["suite", "kind", "key", "signature"], "properties": {
                "suite": {"enum": ["olm-v1"]}, "kind": {"enum": ["one-time", "fallback"]},
                "key": reference("Key"), "signature": reference("Bytes"),
            }}),
        ),
        (
            "RegisterRequest",
            object(
                &[
                    ("account", "AccountId"),
                    ("handle", "Handle"),
                    ("account_key", "Key"),
                    ("device_list", "SignedDeviceList"),
                    ("token_hash", "Key"),
                    ("proof", "Bytes"),
                ],
                &[("invite", "Text")],
            ),
        ),
        ("RegisterResponse", object(&[("account", "AccountId"), ("handle", "Handle"), ("device", "DeviceId")], &[])),
        ("RenameRequest", object(&[("handle", "Handle"), ("proof", "Bytes")], &[])),
        ("DeleteRequest", object(&[("proof", "Bytes")], &[])),
        (
            "AccountView",
            object(
                &[
                    ("account", "AccountId"),
                    ("handle", "Handle"),
                    ("account_key", "Key"),
                    ("device_list", "SignedDeviceList"),
                ],
                &[],
            ),
        ),
        (
            "DeviceView",
            object(&[("device", "DeviceId"), ("name", "Bytes"), ("added_at", "Time"), ("connected_at", "Time")], &[]),
        ),
        (
            "DevicesView",
            json!({"type": "object", "required": ["device_list", "next_device", "devices"], "properties": {
                "device_list": reference("SignedDeviceList"), "next_device": reference("DeviceId"),
                "devices": {"type": "array", "items": reference("DeviceView")},
            }}),
        ),
        (
            "LinkRequest",
            object(
                &[
                    ("device_list", "SignedDeviceList"),
                    ("token_hash", "Key"),
                    ("name", "Bytes"),
                    ("fallback", "SignedPrekey"),
                ],
                &[],
            ),
        ),
        ("LinkResponse", object(&[("account", "AccountId"), ("device", "DeviceId"), ("revision", "Time")], &[])),
        ("RevokeRequest", object(&[("device_list", "SignedDeviceList")], &[])),
        ("DeviceName", object(&[("name", "Bytes")], &[])),
        ("Sealed", object(&[("sealed", "Bytes")], &[])),
        (
            "PrekeyCount",
            json!({"type": "object", "required": ["one_time", "fallback"], "properties": {
                "one_time": {"type": "integer", "minimum": 0}, "fallback": {"type": "boolean"},
            }}),
        ),
        (
            "PrekeyUpload",
            json!({"type": "object", "additionalProperties": false, "properties": {
                "one_time": {"type": "array", "maxItems": 100, "items": reference("SignedPrekey")},
                "fallback": reference("SignedPrekey"),
            }}),
        ),
        ("KeysCheckRequest", object(&[("curve25519", "Key"), ("ed25519", "Key")], &[("fallback", "Key")])),
        (
            "KeysCheck",
            json!({"type": "object", "required": ["identity", "fallback", "one_time"], "properties": {
                "identity": {"type": "boolean"}, "fallback": {"type": "boolean"}, "one_time": {"type": "integer", "minimum": 0},
            }}),
        ),
        ("PrekeyClaim", object(&[("prekey", "SignedPrekey")], &[])),
        (
            "GrantRequest",
            json!({"oneOf": [
                {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": ["upload", "media"]}},
                    "additionalProperties": false},
                {"type": "object", "required": ["kind", "blob"], "additionalProperties": false, "properties": {
                    "kind": {"enum": ["share"]}, "blob": {"type": "string", "pattern": "^[a-z2-7]{51}[aq]$"},
                    "lifetime_s": {"type": "integer", "minimum": 0},
                }},
            ]}),
        ),
        ("GrantResponse", object(&[("grant", "Text"), ("expires_at", "Time")], &[])),
        (
            "Jwks",
            json!({"type": "object", "required": ["keys"], "properties": {"keys": {"type": "array", "items": {"type": "object"}}}}),
        ),
        (
            "Preferences",
            json!({"type": "object", "additionalProperties": false, "properties": {
                "delivery_receipts": {"type": "boolean"}, "presence": {"enum": ["everyone", "contacts", "nobody"]},
            }}),
        ),
        (
            "BlockList",
            json!({"type": "object", "required": ["blocked"], "properties": {
                "blocked": {"type": "array", "items": reference("AccountId")},
            }}),
        ),
        ("SignedGroupChange", object(&[("change", "Bytes"), ("signature", "Bytes")], &[])),
        (
            "GroupsView",
            json!({"type": "object", "required": ["groups"], "properties": {
                "groups": {"type": "array", "items": reference("AccountId")},
            }}),
        ),
        ("GroupChanged", object(&[("group", "AccountId"), ("epoch", "Time")], &[])),
        (
            "GroupChanges",
            json!({"type": "object", "required": ["changes", "epoch"], "properties": {
                "changes": {"type": "array", "items": reference("SignedGroupChange")}, "epoch": reference("Time"),
            }}),
        ),
        ("GroupStateView", object(&[("state", "Bytes"), ("change", "SignedGroupChange")], &[])),
        (
            "GroupLinkRequest",
            object(&[("epoch", "Time"), ("account_key", "Key"), ("proof", "Bytes"), ("after", "Time")], &[]),
        ),
        (
            "GroupLinkView",
            json!({"type": "object", "required": ["state", "changes", "epoch"], "properties": {
                "state": reference("Bytes"), "changes": {"type": "array", "items": reference("SignedGroupChange")},
                "epoch": reference("Time"),
            }}),
        ),
        (
            "GroupDevicesRequest",
            json!({"type": "object", "required": ["known"], "additionalProperties": false, "properties": {
                "known": {"type": "object", "description": "Accounts, and the revision known of each.",
                    "propertyNames": reference("AccountId"), "additionalProperties": reference("Time")},
            }}),
        ),
        (
            "GroupDevicesView",
            json!({"type": "object", "required": ["accounts", "gone", "more"], "properties": {
                "accounts": {"type": "array", "items": reference("AccountView")},
                "gone": {"type": "array", "items": reference("AccountId")}, "more": {"type": "boolean"},
            }}),
        ),
        ("SignedCharter", object(&[("charter", "Bytes"), ("signature", "Bytes")], &[])),
        (
            "ChannelsView",
            json!({"type": "object", "required": ["channels"], "properties": {
                "channels": {"type": "array", "items": reference("AccountId")},
            }}),
        ),
        ("ChannelChanged", object(&[("channel", "AccountId"), ("epoch", "Time")], &[])),
        (
            "ChannelView",
            json!({"type": "object", "required": ["charters", "epoch", "head_seq", "tail_seq", "pages", "full_page"], "properties": {
                "charters": {"type": "array", "items": reference("SignedCharter")}, "epoch": reference("Time"),
                "head_seq": reference("Time"), "tail_seq": reference("Time"), "pages": reference("Time"),
                "full_page": {"type": "boolean"},
            }}),
        ),
        (
            "ChannelEntries",
            json!({"type": "object", "required": ["entries", "head_seq", "tail_seq"], "properties": {
                "entries": {"type": "array", "items": reference("Bytes")},
                "head_seq": reference("Time"), "tail_seq": reference("Time"),
            }}),
        ),
        (
            "ChannelManifest",
            json!({"type": "object", "required": ["pages", "tail_seq"], "properties": {
                "pages": {"type": "array", "items": reference("ChannelPage")}, "tail_seq": reference("Time"),
            }}),
        ),
        (
            "ChannelPage",
            json!({"type": "object", "required": ["page", "first_seq", "last_seq", "blob"], "additionalProperties": false,
                "properties": {
                    "page": reference("Time"), "first_seq": reference("Time"), "last_seq": reference("Time"),
                    "blob": {"type": "string", "pattern": "^[a-z2-7]{51}[aq]$"},
                },
            }),
        ),
        (
            "PushTarget",
            json!({"oneOf": [
                {"type": "object", "required": ["provider", "token", "topic"], "additionalProperties": false, "properties": {
                    "provider": {"enum": ["apns"]}, "token": text(), "topic": text(), "sandbox": {"type": "boolean"},
                    "voip_token": text(),
                }},
                {"type": "object", "required": ["provider", "token"], "additionalProperties": false, "properties": {
                    "provider": {"enum": ["fcm"]}, "token": text(),
                }},
                {"type": "object", "required": ["provider", "endpoint", "p256dh", "auth"], "additionalProperties": false,
                    "properties": {
                        "provider": {"enum": ["web-push", "unified-push"]}, "endpoint": text(), "p256dh": text(), "auth": text(),
                    },
                },
            ]}),
        ),
        (
            "PushView",
            json!({"type": "object", "required": ["providers"], "properties": {
                "providers": {"type": "array", "items": reference("PushProvider")}, "vapid_key": text(),
                "provider": reference("PushProvider"), "set_at": reference("Time"),
            }}),
        ),
        (
            "PushTest",
            json!({"type": "object", "required": ["provider", "accepted", "reason"], "properties": {
                "provider": reference("PushProvider"), "accepted": {"type": "boolean"}, "reason": text(),
            }}),
        ),
        ("PushProvider", json!({"enum": ["apns", "fcm", "web-push", "unified-push"]})),
        (
            "ReportRequest",
            json!({"type": "object", "required": ["account", "reason"], "additionalProperties": false, "properties": {
                "account": reference("AccountId"), "reason": {"type": "string", "minLength": 1, "maxLength": 1000},
                "messages": {"type": "array", "items": object(&[("msg_id", "MsgId"), ("text", "Text")], &[])},
            }}),
        ),
        ("Text", json!({"type": "string"})),
    ];
    Value::Object(schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect())
}

/// An object with these members and no others: those that must be there, and those that may.
fn object(required: &[(&str, &str)], optional: &[(&str, &str)]) -> Value {
    let properties = required.iter().chain(optional).map(|(name, schema)| ((*name).to_owned(), reference(schema)));
    let names: Vec<_> = required.iter().map(|(name, _)| *name).collect();
    json!({
        "type": "object", "required": names, "additionalProperties": false,
        "properties": properties.collect::<Map<_, _>>(),
    })
}
