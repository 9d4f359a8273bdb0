//! What a person meets, as stories: the real binary on a free port, driven by its own command line and by raw HTTP.

mod support;

mod stories {
    mod bad_input;
    mod first_minutes;
    mod http;
    mod interruptions;
    mod roles;
    mod structure;
}
