//! Requests to S3, counted by what they are: each is paid for.
//!
//! Counted when it is sent, so that what is tried again counts again, as it does on the bill.

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

use crate::metrics::handles;

/// Counts what a client sends.
#[derive(Debug)]
pub(super) struct CountRequests;

impl Intercept for CountRequests {
    fn name(&self) -> &'static str {
        "CountRequests"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let counted = &handles().s3;
        match op(request.method(), request.uri()) {
            Op::Get => counted.get.increment(1),
            Op::Head => counted.head.increment(1),
            Op::Put => counted.put.increment(1),
            Op::Part => counted.part.increment(1),
            Op::List => counted.list.increment(1),
            Op::Multipart => counted.multipart.increment(1),
            Op::Delete => counted.delete.increment(1),
        }
        Ok(())
    }
}

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Get,
    Head,
    /// An object is written whole.
    Put,
    /// A part of one is.
    Part,
    /// Objects, parts or multipart uploads are listed.
    List,
    /// A multipart upload is begun or ended.
    Multipart,
    /// An object is removed, or a multipart upload given up.
    Delete,
}

fn op(method: &str, uri: &str) -> Op {
    let has = |name: &str| {
        let (_, query) = uri.split_once('?').unwrap_or_default();
        query.split('&').any(|pair| pair.split('=').next() == Some(name))
    };
    match method {
        "HEAD" => Op::Head,
        "DELETE" => Op::Delete,
        "POST" => Op::Multipart,
        "PUT" if has("partNumber") => Op::Part,
        "PUT" => Op::Put,
        _ if has("list-type") || has("uploads") || has("uploadId") => Op::List,
        _ => Op::Get,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let cases = [
            ("GET", "http://s3/b/data/x?x-id=GetObject", Op::Get),
            ("GET", "http://s3/b/?list-type=2&prefix=uploads", Op::List),
            ("GET", "http://s3/b/?uploads&prefix=data", Op::List),
            ("GET", "http://s3/b/data/x?uploadId=7&x-id=ListParts", Op::List),
            ("HEAD", "http://s3/b/data/x", Op::Head),
            ("PUT", "http://s3/b/data/x?x-id=PutObject", Op::Put),
            ("PUT", "http://s3/b/data/x?x-id=UploadPart&partNumber=1&uploadId=7", Op::Part),
            ("POST", "http://s3/b/data/x?uploads", Op::Multipart),
            ("POST", "http://s3/b/data/x?uploadId=7", Op::Multipart),
            ("DELETE", "http://s3/b/data/x?uploadId=7", Op::Delete),
        ];
        for (method, uri, expected) in cases {
            assert_eq!(op(method, uri), expected, "{method} {uri}");
        }
    }
}
