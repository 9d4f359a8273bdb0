//! What commands print: results on stdout, progress and errors on stderr.
//!
//! A person sees one line a file that redraws itself; a program asks for `--json` and gets one JSON object a result.
//! Nothing else in the binary writes to stdout.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use waxwing_client::{ClientError, Progress};

/// Exit code: something is unfinished and goes on with `waxwing resume`.
const EXIT_UNFINISHED: u8 = 3;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output as JSON lines, or as text for a person.
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads it.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: `text` for a person, or `value` as a line of JSON.
    #[allow(clippy::print_stdout, reason = "the one place where data goes to stdout")]
    pub(crate) fn result(self, text: impl std::fmt::Display, value: &impl Serialize) {
        let line = if self.json {
            serde_json::to_string(value).expect("results are plain structures, which always serialize")
        } else {
            text.to_string()
        };
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            // Nobody got it (`watch | head -1`, a full disk): it must not count as told. What is not told yet stays in
            // the profile and comes again.
            std::process::exit(1);
        }
    }

    /// Tells a person something that is not a result. Silent with `--json`.
    pub(crate) fn note(self, text: impl std::fmt::Display) {
        if !self.json {
            self.warn(text);
        }
    }

    /// Tells of something that went wrong and is no end.
    pub(crate) fn warn(self, text: impl std::fmt::Display) {
        say(text);
    }

    /// Prints why a command failed, and gives the exit code that says so.
    pub(crate) fn fail(self, error: &anyhow::Error) -> ExitCode {
        let client = error.downcast_ref::<ClientError>();
        let unfinished = client.is_some_and(|error| matches!(error, ClientError::Interrupted { .. }));
        if self.json {
            self.result("", &json!({ "error": format!("{error:#}"), "resumable": unfinished }));
        }
        say(format_args!("error: {error:#}"));
        if unfinished { ExitCode::from(EXIT_UNFINISHED) } else { ExitCode::FAILURE }
    }
}

/// A line on stderr that shows how far a transfer is.
#[derive(Debug)]
pub(crate) struct ProgressLine {
    name: String,
    shown: bool,
    state: Mutex<LineState>,
}

#[derive(Debug, Default)]
struct LineState {
    /// When this phase began, and at which byte.
    began: Option<(Instant, u64)>,
    drawn: Option<Instant>,
    phase: &'static str,
    said_resumed: bool,
}

/// How often the line is drawn again at most.
const REDRAW: Duration = Duration::from_millis(100);

impl ProgressLine {
    /// A line for the file called `name`. Without a terminal it keeps quiet, but for what happens once.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), shown: std::io::stderr().is_terminal(), state: Mutex::default() }
    }

    /// Takes note of how far it is.
    pub(crate) fn update(&self, progress: &Progress) {
        let mut state = self.state.lock().expect("drawing a line does not panic");
        match progress {
            Progress::Planning { done, total } => self.draw(&mut state, "reading", *done, *total, None),
            Progress::Uploading { done, total, resumed_at } => {
                if let Some(at) = resumed_at
                    && !state.said_resumed
                {
                    state.said_resumed = true;
                    self.say(&format!("{}: resumed at {}", self.name, bytes(*at)));
                }
                self.draw(&mut state, "uploading", *done, *total, *resumed_at);
            }
            Progress::Downloading { done, total } => self.draw(&mut state, "downloading", *done, *total, None),
            Progress::Waiting { attempt, delay, reason } => {
                self.say(&format!("{}: {reason}; try {attempt} in {:.1} s", self.name, delay.as_secs_f64()));
            }
            _ => {}
        }
    }

    fn say(&self, text: &str) {
        let clear = if self.shown { "\r\x1b[K" } else { "" };
        say(format_args!("{clear}{text}"));
    }

    fn draw(&self, state: &mut LineState, phase: &'static str, done: u64, total: u64, resumed_at: Option<u64>) {
        if !self.shown {
            return;
        }
        let now = Instant::now();
        if state.phase != phase {
            *state = LineState { phase, began: Some((now, done)), said_resumed: state.said_resumed, drawn: None };
        }
        if done < total && state.drawn.is_some_and(|drawn| now - drawn < REDRAW) {
            return;
        }
        state.drawn = Some(now);
        let (began, from) = state.began.unwrap_or((now, done));
        let resumed = resumed_at.map(|at| format!("  (resumed at {})", bytes(at))).unwrap_or_default();
        let line = render(&self.name, phase, done, total, done.saturating_sub(from), now - began);
        // A line that cannot be drawn is no reason to stop a transfer.
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{line}{resumed}").and_then(|()| stderr.flush());
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown && self.state.get_mut().is_ok_and(|state| state.drawn.is_some()) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// `photo.jpg ━━━━━━━━━━ 62 %  31/50 MB  4.1 MB/s  ETA 5 s`
fn render(name: &str, phase: &str, done: u64, total: u64, moved: u64, took: Duration) -> String {
    const CELLS: u64 = 20;
    // An empty file is wholly there.
    let of = |whole: u64| (done.min(total) * whole).checked_div(total).unwrap_or(whole);
    let (filled, percent) = (of(CELLS), of(100));
    let bar: String = (0..CELLS).map(|cell| if cell < filled { '━' } else { '┈' }).collect();
    #[allow(clippy::cast_precision_loss, reason = "a rate for a person")]
    let rate = moved as f64 / took.as_secs_f64().max(0.001);
    let eta = if rate >= 1.0 {
        #[allow(clippy::cast_precision_loss, reason = "a time for a person")]
        let seconds = total.saturating_sub(done) as f64 / rate;
        format!("  ETA {seconds:.0} s")
    } else {
        String::new()
    };
    let (done, total) = (bytes(done), bytes(total));
    let mb_per_s = rate / 1e6;
    format!("{name} {bar} {percent} %  {phase} {done} of {total}  {mb_per_s:.1} MB/s{eta}")
}

/// A line on stderr; nobody need listen.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Ends the process after Ctrl-C with what is left of the work. Everything acknowledged is kept on both sides; there is
/// nothing to tidy up.
pub(crate) fn interrupted(left: &Interrupted) -> ! {
    match left {
        Interrupted::Resumable(command) => say(format_args!("\ninterrupted; go on with\n\n  {command}\n")),
        Interrupted::Nothing(outcome) => say(format_args!("\ninterrupted; {outcome}")),
    }
    std::process::exit(130)
}

/// What Ctrl-C leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
    /// A transfer, and the command that goes on with it.
    Resumable(String),
    /// Nothing to go on with; what to say instead, such as `nothing was sent`.
    Nothing(&'static str),
}

/// Text of others as one line that cannot steer a terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// A text as a QR code of half blocks, dark on light, for a camera in front of the screen.
pub(crate) fn qr(text: &str) -> String {
    use qrcode::render::unicode::Dense1x2;
    match qrcode::QrCode::new(text) {
        Ok(code) => code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build(),
        // Longer than a QR code can be: the text itself stands beside it.
        Err(_) => String::new(),
    }
}

/// How this program was called, so that what it suggests can be typed as it stands.
pub(crate) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "waxwing".into())
}

/// A count of bytes for a person, in decimal units.
pub(crate) fn bytes(count: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits for a person")]
    let value = count as f64;
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_part_rate_and_what_is_left() {
        let line = render("photo.jpg", "uploading", 31_000_000, 50_000_000, 20_500_000, Duration::from_secs(5));
        assert_eq!(line, "photo.jpg ━━━━━━━━━━━━┈┈┈┈┈┈┈┈ 62 %  uploading 31.0 MB of 50.0 MB  4.1 MB/s  ETA 5 s");
    }

    #[test]
    fn an_empty_file_is_wholly_there() {
        assert!(render("a", "uploading", 0, 0, 0, Duration::ZERO).contains("100 %"));
    }

    #[test]
    fn what_strangers_write_cannot_steer_a_terminal() {
        assert_eq!(visible("a\x1b]52;c;x\x07\nsaved b"), "a\u{FFFD}]52;c;x\u{FFFD}\u{FFFD}saved b");
    }

    #[test]
    fn counts_are_short() {
        assert_eq!([bytes(999), bytes(18_000_000), bytes(1_073_741_824)], ["999 B", "18.0 MB", "1.07 GB"]);
    }
}
