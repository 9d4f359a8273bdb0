//! What a person meets, as stories: the real binary on a free port, driven by its own command line and by raw HTTP.

#![allow(unreachable_pub, reason = "a test binary shows nothing to anybody")]
#![allow(dead_code, reason = "the two test binaries share their support and use different parts of it")]
#![allow(clippy::cast_precision_loss, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

mod stories {
    mod acme;
    mod bad_input;
    mod bad_networks;
    mod channels;
    mod databases;
    mod devices;
    mod doctor;
    mod entry;
    mod first_minutes;
    mod framing;
    mod groups;
    mod hostile_senders;
    mod http;
    mod interim;
    mod interruptions;
    mod keeping;
    mod malformed;
    mod operating;
    mod people;
    mod roles;
    mod secured;
    mod structure;
    mod webhook;
}
