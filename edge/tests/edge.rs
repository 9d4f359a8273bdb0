//! The edge over HTTP, before an origin that can be told to stall, to break off and to lie.

#![allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers")]
#![allow(clippy::unwrap_used, reason = "the harness stands outside of test functions")]

mod edge {
    mod access_log;
    mod conditions;
    mod crash;
    mod disk;
    mod failures;
    mod fills;
    mod grants;
    mod harness;
    mod model;
    mod origin;
    mod peers;
    mod purges;
    mod ranges;
    mod raw;
    mod share;
    mod storms;
}
