//! `/v1/uploads`: each request is answered in the dialect it speaks.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::dialect::Dialect;
use super::error::{HttpError, method_not_allowed};
use super::grants::UploadGrant;
use super::{App, UploadPath, content_range, ietf, now, put, tus};

/// `OPTIONS`: what this server can do, for all dialects.
pub(super) async fn discover(State(app): State<App>) -> Response {
    let mut response = tus::discover(&app);
    if let Ok(limit) = HeaderValue::try_from(ietf::limits_in_general(&app)) {
        response.headers_mut().insert(ietf::UPLOAD_LIMIT, limit);
    }
    response
}

/// `POST` and `PUT /v1/uploads`: a new upload.
pub(super) async fn create(
    State(app): State<App>,
    dialect: Dialect,
    grant: UploadGrant,
    request: Request,
) -> Result<Response, HttpError> {
    match dialect {
        Dialect::Tus | Dialect::Any => tus::create(&app, &grant, request).await,
        Dialect::Ietf => ietf::create(&app, &grant, request).await,
        Dialect::ContentRange => content_range::create(&app, &grant, request).await,
    }
}

/// `HEAD /v1/uploads/{id}`: where to go on.
pub(super) async fn status(
    State(app): State<App>,
    dialect: Dialect,
    grant: UploadGrant,
    UploadPath(id): UploadPath,
) -> Result<Response, HttpError> {
    let now = now();
    let progress = app.uploads.status(grant.allowance.owner, id, now).await?;
    if dialect == Dialect::Ietf {
        return Ok((StatusCode::NO_CONTENT, ietf::standing(&app, &grant, &progress, now)).into_response());
    }
    let mut response = tus::status(&progress);
    if dialect == Dialect::Any {
        response.headers_mut().extend(ietf::standing(&app, &grant, &progress, now));
    }
    Ok(response)
}

/// `PATCH /v1/uploads/{id}`: more of its bytes.
pub(super) async fn append(
    State(app): State<App>,
    dialect: Dialect,
    grant: UploadGrant,
    UploadPath(id): UploadPath,
    request: Request,
) -> Result<Response, HttpError> {
    match dialect {
        Dialect::Ietf => ietf::append(&app, &grant, id, request).await,
        _ => tus::append(&app, &grant, id, request).await,
    }
}

/// `PUT /v1/uploads/{id}`: a range of its bytes.
pub(super) async fn send(
    State(app): State<App>,
    grant: UploadGrant,
    UploadPath(id): UploadPath,
    request: Request,
) -> Result<Response, HttpError> {
    content_range::send(&app, &grant, id, request).await
}

/// `POST /v1/uploads/{id}`: a range of its bytes from clients that POST ranges, or another method, named in a header, for
/// clients behind something that lets only GET and POST through.
pub(super) async fn post(
    State(app): State<App>,
    dialect: Dialect,
    grant: UploadGrant,
    path: UploadPath,
    request: Request,
) -> Result<Response, HttpError> {
    if dialect == Dialect::ContentRange {
        return content_range::send(&app, &grant, path.0, request).await;
    }
    match tus::overridden_method(request.headers())? {
        Some("PATCH") => append(State(app), dialect, grant, path, request).await,
        Some("DELETE") => terminate(State(app), grant, path).await,
        Some("HEAD") => status(State(app), dialect, grant, path).await,
        _ => Err(method_not_allowed().await),
    }
}

/// `DELETE /v1/uploads/{id}`: ends an upload. A blob that it became stays.
pub(super) async fn terminate(
    State(app): State<App>,
    grant: UploadGrant,
    UploadPath(id): UploadPath,
) -> Result<Response, HttpError> {
    app.uploads.terminate(grant.allowance.owner, id, now()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `PUT /v1/blobs`: a blob in one request, which a client of the IETF's protocol can make resumable.
pub(super) async fn put_blob(
    State(app): State<App>,
    dialect: Dialect,
    grant: UploadGrant,
    request: Request,
) -> Result<Response, HttpError> {
    match dialect {
        Dialect::Ietf => ietf::create(&app, &grant, request).await,
        _ => put::put(&app, &grant, request).await,
    }
}
