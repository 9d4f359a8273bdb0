//! `/v1/openapi.json`: the origin's HTTP API as OpenAPI 3.1.
//!
//! Three dialects share the same paths, and what tells them apart is headers; annotations over each handler would bury
//! it. So the description stands here, in one piece, in the order in which a reader would ask. `tests/clients` lets
//! schemathesis make requests of it, valid and not, and holds the answers against what is said here.

mod parts;

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{HttpMethod, Operation, PathItem, Paths};
use utoipa::openapi::{Components, Info, License, OpenApi};

use self::parts::{Op, boolean, bytes, integer, json, structured, text};

/// The description as JSON text; the same for everyone.
static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| document().to_json().expect("strings and numbers always serialize"));

/// `GET /v1/openapi.json`.
pub(super) async fn get() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

fn document() -> OpenApi {
    let mut info = Info::new("Waxwing origin", env!("CARGO_PKG_VERSION"));
    info.description = Some(ABOUT.into());
    info.license = Some(License::new("MIT OR Apache-2.0"));
    let mut document = OpenApi::new(info, paths());
    document.components = Some(components());
    document
}

const ABOUT: &str = "Resumable uploads of sealed blobs in three dialects on one engine: tus 1.0.0 with all its \
    extensions, Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload, interop 5 to 8), and PUT with \
    Content-Range as Google's clients speak it. A request is answered in the dialect it speaks: Tus-Resumable or \
    application/offset+octet-stream is tus; Upload-Complete, Upload-Incomplete, Upload-Draft-Interop-Version or \
    application/partial-upload is the IETF's; PUT, Content-Range or uploadType=resumable is the third. An upload begun in \
    one can go on in another. An offset that was told is durable. Errors are problems, RFC 9457: match on `type`.";

fn components() -> Components {
    Components::builder()
        .schema("Problem", parts::problem_schema())
        .schema("BlobId", parts::blob_id_schema())
        .schema("UploadId", parts::upload_id_schema())
        .security_scheme("upload", parts::grant("A grant for the audience `upload`: `waxwing grant upload`."))
        .security_scheme("edge", parts::grant("A grant for the audience `edge`: `waxwing admin grant edge`."))
        .build()
}

fn paths() -> Paths {
    let described = [
        (
            "/v1/uploads",
            vec![
                (HttpMethod::Options, discover("discoverUploads")),
                (HttpMethod::Post, create()),
                (HttpMethod::Put, create_by_put()),
            ],
        ),
        (
            "/v1/uploads/{id}",
            vec![
                (HttpMethod::Options, discover("discoverUpload")),
                (HttpMethod::Head, status()),
                (HttpMethod::Patch, append()),
                (HttpMethod::Put, send_range()),
                (HttpMethod::Post, post()),
                (HttpMethod::Delete, terminate()),
            ],
        ),
        ("/v1/blobs", vec![(HttpMethod::Put, put_blob())]),
        ("/v1/blobs/{id}/keep", vec![(HttpMethod::Post, keep()), (HttpMethod::Delete, let_go())]),
        (
            "/origin/v1/blobs/{id}",
            vec![
                (HttpMethod::Get, read("readBlob", "A blob, or ranges of it")),
                (HttpMethod::Head, read("headBlob", "A blob's size")),
            ],
        ),
        (
            "/origin/v1/blobs/{id}/outboard",
            vec![
                (HttpMethod::Get, outboard("readOutboard", "What each 64 KiB of a blob is checked against")),
                (HttpMethod::Head, outboard("headOutboard", "The outboard's size and the blob's")),
            ],
        ),
        ("/origin/v1/purges", vec![(HttpMethod::Get, purges())]),
    ];
    let mut paths = Paths::new();
    for (path, operations) in described {
        let mut item = PathItem::default();
        for (method, operation) in operations {
            item.merge_operations(PathItem::new(method, operation));
        }
        paths.paths.insert(path.into(), item);
    }
    paths
}

/// What is said of a new upload.
const NEW: &str = "The upload is there, and as far along as Upload-Offset says. When it is whole, Waxwing-Blob names the \
    blob, and so does a JSON body in the IETF's dialect.";

/// Where an upload stands, in the words of all dialects; each answer has those of its own.
fn standing() -> Vec<(&'static str, parts::Kind)> {
    vec![
        ("Upload-Offset", integer("Bytes that are durable.")),
        ("Upload-Length", integer("Bytes there will be, when known.")),
        ("Upload-Complete", boolean("IETF: whether the blob is whole.")),
        ("Upload-Limit", text("IETF: max-size and max-age, a structured dictionary.")),
        ("Upload-Expires", text("tus: when it is forgotten, an HTTP date.")),
        ("Waxwing-Blob", parts::blob_id("The blob, once it is whole.")),
    ]
}

/// The same for a new upload.
fn standing_of_new() -> Vec<(&'static str, parts::Kind)> {
    let mut headers = standing();
    headers.push(("Location", parts::url("The upload.")));
    headers
}

fn discover(id: &str) -> Operation {
    let op = Op::new(id, "What this server can do, for all dialects");
    let op = if id == "discoverUpload" { op.upload_path() } else { op };
    op.answer(
        "204",
        "What this server can do.",
        vec![
            ("Tus-Version", text("Versions of tus.")),
            ("Tus-Extension", text("Extensions of tus, separated by commas.")),
            ("Tus-Checksum-Algorithm", text("What Upload-Checksum may name.")),
            ("Tus-Max-Size", integer("Bytes of the largest blob.")),
            ("Upload-Limit", text("The IETF's: max-size and max-age, a structured dictionary.")),
        ],
    )
    .build()
}

fn create() -> Operation {
    Op::new("createUpload", "Begin an upload, with its first bytes or without")
        .about(
            "tus: Upload-Length or Upload-Defer-Length: 1, content as application/offset+octet-stream. IETF: \
             Upload-Complete says whether the content is all there will be; over HTTP/1.1 a 104 tells the URL while it \
             comes. Content-Range: uploadType=resumable, or x-goog-resumable: start. A client that declares \
             Waxwing-Blob and has that blob already is done at once.",
        )
        .upload_grant()
        .query("uploadType", text("`resumable` begins an upload of the third dialect."))
        .header("Tus-Resumable", text("1.0.0").with_values(&["1.0.0"]))
        .header("Upload-Length", integer("Bytes there will be."))
        .header("Upload-Defer-Length", text("1: the length comes later.").with_values(&["1"]))
        .header(
            "Upload-Metadata",
            text("tus's metadata: given back, and nothing more.").matching(r"^[a-z]+ [A-Za-z0-9+/]{4}$"),
        )
        .header("Upload-Concat", text("`partial`, or `final;` and the URLs of partial uploads."))
        .header("Upload-Checksum", text("An algorithm and the base64 of the content's digest."))
        .header("Upload-Complete", boolean("Whether the content is all there will be."))
        .header("Upload-Draft-Interop-Version", integer("5 to 8: the draft's version; asks for the 104."))
        .header("Content-Digest", structured("The content's digest, RFC 9530; with another nothing is kept."))
        .header("Repr-Digest", structured("The digest of all of it; with another nothing is kept."))
        .header("Want-Repr-Digest", structured("Asks for the digest of all of it."))
        .header("Waxwing-Blob", parts::blob_id("The id the blob will have; with another nothing is kept."))
        .header("X-Goog-Resumable", text("`start` begins an upload of the third dialect.").with_values(&["start"]))
        .header("X-Upload-Content-Length", integer("The third dialect's Upload-Length."))
        .takes(&["application/offset+octet-stream", "application/octet-stream"])
        .takes_json(json(Vec::new()))
        .answer("201", NEW, standing_of_new())
        .answer("200", "The upload of the third dialect is there.", vec![("Location", parts::url("The upload."))])
        .build()
}

fn create_by_put() -> Operation {
    Op::new("createUploadByPut", "Begin an upload in the IETF's dialect")
        .upload_grant()
        .required_header("Upload-Complete", boolean("Whether the content is all there will be."))
        .header("Upload-Length", integer("Bytes there will be."))
        .header("Upload-Draft-Interop-Version", integer("5 to 8: the draft's version; asks for the 104."))
        .header("Content-Digest", structured("The content's digest, RFC 9530; with another nothing is kept."))
        .header("Repr-Digest", structured("The digest of all of it; with another nothing is kept."))
        .header("Waxwing-Blob", parts::blob_id("The id the blob will have; with another nothing is kept."))
        .takes(&["application/octet-stream"])
        .answer("201", NEW, standing_of_new())
        .build()
}

fn status() -> Operation {
    Op::new("uploadStatus", "Where to go on")
        .about(
            "Stops a request that is appending, so that the offset told is one that the next request can go on from.",
        )
        .upload_path()
        .upload_grant()
        .header("Tus-Resumable", text("1.0.0").with_values(&["1.0.0"]))
        .header("Upload-Draft-Interop-Version", integer("5 to 8: the draft's version."))
        .answer("200", "Where the upload stands.", standing())
        .answer("204", "Where the upload stands, to a client of the IETF's dialect.", standing())
        .build()
}

fn append() -> Operation {
    Op::new("appendToUpload", "More of an upload's bytes")
        .upload_path()
        .upload_grant()
        .required_header("Upload-Offset", integer("The offset the client believes is held; another is a 409."))
        .header("Tus-Resumable", text("1.0.0").with_values(&["1.0.0"]))
        .header("Upload-Length", integer("Bytes there will be, when it was deferred."))
        .header("Upload-Checksum", text("An algorithm and the base64 of the content's digest."))
        .header("Upload-Complete", boolean("IETF: whether the content is the last."))
        .header("Content-Digest", structured("The content's digest, RFC 9530; with another nothing is kept."))
        .header("Waxwing-Blob", parts::blob_id("The id the blob will have."))
        .takes(&["application/offset+octet-stream", "application/partial-upload"])
        .answer("204", "The bytes are durable.", standing())
        .answer("200", "The bytes are durable and the blob is whole; to the IETF's dialect.", standing())
        .with_blob()
        .build()
}

fn send_range() -> Operation {
    Op::new("sendRange", "A range of an upload's bytes, or the question how far it is")
        .about("Ranges may overlap what is stored. `bytes */*` or `bytes */TOTAL`, without content, asks.")
        .upload_path()
        .upload_grant()
        .header(
            "Content-Range",
            text("Which bytes these are.").matching(r"^bytes (\*|[0-9]{1,3}-[0-9]{1,3})/(\*|[0-9]{1,4})$"),
        )
        .header("Content-Digest", structured("The content's digest, RFC 9530; with another nothing is kept."))
        .header("X-GUploader-No-308", text("`yes`: 200 instead of 308, with X-HTTP-Status-Code-Override."))
        .header("Waxwing-Blob", parts::blob_id("The id the blob will have."))
        .takes(&["application/octet-stream"])
        .answer(
            "308",
            "More is to come, from after Range.",
            vec![("Range", text("What is stored, from byte 0; absent for nothing."))],
        )
        .answer("200", "The blob is whole.", vec![("Waxwing-Blob", parts::blob_id("The blob."))])
        .with("application/json", json(Vec::new()))
        .build()
}

fn post() -> Operation {
    Op::new("postToUpload", "A range by POST, or another method named in a header")
        .about("With Content-Range as PUT. Else X-HTTP-Method-Override names PATCH, DELETE or HEAD, and the answer is theirs.")
        .upload_path()
        .upload_grant()
        .header("X-HTTP-Method-Override", text("PATCH, DELETE or HEAD.").with_values(&["PATCH", "DELETE", "HEAD"]))
        .header("Content-Range", text("Which bytes these are."))
        .header("Tus-Resumable", text("1.0.0").with_values(&["1.0.0"]))
        .header("Upload-Offset", integer("The offset the client believes is held."))
        .takes(&["application/offset+octet-stream", "application/octet-stream"])
        .answer("204", "As PATCH or DELETE answers.", vec![])
        .answer("200", "As HEAD or PUT answers.", vec![])
        .answer("308", "As PUT answers.", vec![])
        .build()
}

fn terminate() -> Operation {
    Op::new("terminateUpload", "End an upload")
        .about("An unfinished one leaves nothing. A blob that it became stays.")
        .upload_path()
        .upload_grant()
        .header("Tus-Resumable", text("1.0.0").with_values(&["1.0.0"]))
        .answer("204", "It is gone.", vec![])
        .build()
}

fn put_blob() -> Operation {
    Op::new("putBlob", "A blob in one request")
        .about("Whole or not at all. The same content again is the same blob. With Upload-Complete it is the IETF's upload.")
        .upload_grant()
        .header("Content-Digest", structured("The content's digest, RFC 9530; with another nothing is kept."))
        .header("Waxwing-Blob", parts::blob_id("The id the blob will have; with another nothing is kept."))
        .takes(&["application/octet-stream"])
        .answer("201", "The blob is durable.", vec![("Waxwing-Blob", parts::blob_id("The blob."))])
        .with_blob()
        .build()
}

fn keep() -> Operation {
    Op::new("keepBlob", "Have a blob, or have it for the whole time again")
        .about("To know its id is to be allowed. It counts against the caller's quota once.")
        .blob_path()
        .upload_grant()
        .answer("204", "The caller has it.", vec![])
        .build()
}

fn let_go() -> Operation {
    Op::new("letGoOfBlob", "Have a blob no more")
        .about("It goes, from edges too, when nobody else has it.")
        .blob_path()
        .upload_grant()
        .answer("204", "The caller has it no more.", vec![])
        .build()
}

fn read(id: &str, summary: &str) -> Operation {
    let known =
        || vec![("ETag", text("The blob's id in quotes: blobs never change.")), ("Accept-Ranges", text("bytes"))];
    Op::new(id, summary)
        .blob_path()
        .edge_grant()
        .header("Range", text("Up to eight ranges.").matching("^bytes=[0-9]{1,3}-[0-9]{0,3}$"))
        .header("If-Range", text("The blob's ETag; with another the whole is sent."))
        .header("If-None-Match", text("ETags of what is held already."))
        .answer("200", "All of it.", known())
        .with_bytes(&["application/octet-stream"])
        .answer("206", "What was asked for.", known())
        .with_bytes(&["application/octet-stream", "multipart/byteranges"])
        .answer("304", "It is held already.", vec![("ETag", text("The blob's id in quotes."))])
        .build()
}

fn outboard(id: &str, summary: &str) -> Operation {
    Op::new(id, summary)
        .about("32 bytes for each 64 KiB of the blob: the chaining value of that chunk group.")
        .blob_path()
        .edge_grant()
        .header("If-None-Match", text("ETags of what is held already."))
        .answer("200", "All of it.", vec![("Waxwing-Blob-Bytes", integer("The blob's size."))])
        .with_bytes(&["application/octet-stream"])
        .answer("304", "It is held already.", vec![("ETag", text("The blob's id in quotes."))])
        .build()
}

fn purges() -> Operation {
    Op::new("listPurges", "Which blobs went, for the edges that may have them")
        .edge_grant()
        .query("after", integer("The number of the last purge known; all without it."))
        .answer("200", "At most a thousand, by number; ask again while `next` is beyond them.", vec![])
        .with("application/json", json(vec![("oldest", bytes()), ("next", bytes()), ("purges", parts::list())]))
        .build()
}
