//! The outside log: a process that writes down what clients were told, and outlives them all.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Runs the recorder: prints its address, then appends every line that anybody sends to `log`.
pub fn run(log: &Path) {
    // The log first: whoever knows the address may read it.
    let log = Mutex::new(File::create(log).expect("the log can be made"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let log = &log;
            scope.spawn(move || {
                let lines = BufReader::new(stream.expect("loopback connections arrive")).lines();
                // A line cut by a kill was never said: only whole ones count, and they end with a full stop.
                for line in lines.map_while(Result::ok).filter(|line| line.ends_with(" .")) {
                    writeln!(log.lock().expect("nobody panics with it"), "{line}").expect("the log is writable");
                }
            });
        }
    });
}

/// The recorder as a child process of the test.
pub struct Recorder {
    child: Child,
    /// Where workers report to.
    pub address: String,
    log: PathBuf,
}

impl Recorder {
    /// Starts one that logs to `dir/acknowledged.log`.
    pub fn start(dir: &Path) -> Self {
        let log = dir.join("acknowledged.log");
        let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
        let mut child = command.arg("recorder").arg(&log).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut address = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut address).expect("it tells its address");
        Self { child, address: address.trim().to_owned(), log }
    }

    /// Everything recorded so far, a vector of words a line.
    pub fn lines(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(&self.log).expect("the log is readable");
        let words = |line: &str| line.trim_end_matches(" .").split(' ').map(str::to_owned).collect();
        text.lines().map(words).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker's line to the recorder.
pub struct Reporter(Mutex<TcpStream>);

impl Reporter {
    /// Connects to the recorder at `address`.
    pub fn connect(address: &str) -> Self {
        Self(Mutex::new(TcpStream::connect(address).expect("the recorder runs")))
    }

    /// Reports one line. The kernel has it when this returns: a kill of this process does not take it back.
    pub fn say(&self, line: &str) {
        let mut stream = self.0.lock().expect("nobody panics with it");
        stream.write_all(format!("{line} .\n").as_bytes()).expect("the recorder outlives its workers");
    }
}
