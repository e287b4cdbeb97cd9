//! Runs the real binary on a data directory of its own, on free ports.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// The listeners that are on by default.
pub(crate) const LISTENERS: [&str; 5] = ["mqtts", "amqps", "https", "amqp", "admin"];

/// A folder with a data directory in it, and the hub that may run there.
pub(crate) struct Place {
    folder: TempDir,
}

/// A running hub.
pub(crate) struct Hub {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What was printed up to readiness.
    pub(crate) welcome: String,
    data: PathBuf,
}

/// An answer of the admin listener.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// `serve` on loopback and free ports, with more arguments.
    pub(crate) fn serve_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&["serve"]);
        for listener in LISTENERS {
            command.args(["--set", &format!("listeners.{listener}.address=127.0.0.1")]);
            command.args(["--set", &format!("listeners.{listener}.port=0")]);
        }
        command.args(["--set", "store.segment_bytes=1 MiB"]);
        command.args(more);
        command
    }

    /// Starts a hub and returns when it says that it is ready.
    pub(crate) fn serve(&self, more: &[&str]) -> Hub {
        Hub::start(self.serve_command(more), self.data())
    }

    /// A command with `--data`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fieldpost();
        command.args(arguments).arg("--data").arg(self.data());
        command
    }

    /// Runs a command and expects success; gives its standard output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command, expects exit code 1, and gives its standard error.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        stderr_of_failure(&self.command(arguments).output().unwrap())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut with_output = arguments.to_vec();
        with_output.extend(["--output", "json"]);
        serde_json::from_str(&self.run(&with_output)).unwrap()
    }
}

/// The binary, with nothing of the caller's environment that would change it.
pub(crate) fn fieldpost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDPOST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Expects exit code 1 and gives the standard error.
pub(crate) fn stderr_of_failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

impl Hub {
    pub(crate) fn start(mut command: Command, data: PathBuf) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut welcome = String::new();
        while !welcome.ends_with("stops the hub.\n") {
            if stdout.read_line(&mut welcome).unwrap() == 0 {
                let mut log = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut log)
                    .unwrap();
                panic!("the hub did not start: {welcome}{log}");
            }
        }
        Self {
            child,
            stdout,
            welcome,
            data,
        }
    }

    pub(crate) fn endpoints(&self) -> Value {
        let text = std::fs::read_to_string(self.data.join("endpoints.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn port(&self, listener: &str) -> u16 {
        let endpoints = self.endpoints();
        let port = &endpoints["listeners"][listener]["port"];
        u16::try_from(port.as_u64().unwrap()).unwrap()
    }

    pub(crate) fn token(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("admin-token")).unwrap();
        text.trim().to_owned()
    }

    /// A request to the admin listener with exactly these headers.
    pub(crate) fn ask(&self, request_line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(self.port("admin"), request_line, headers, body)
    }

    /// A request with everything that the guards want.
    pub(crate) fn admin(&self, request_line: &str, body: &str) -> Answer {
        let authorization = format!("Bearer {}", self.token());
        let headers = [
            ("Host", "localhost"),
            ("Authorization", &authorization),
            ("Content-Type", "application/json"),
        ];
        self.ask(request_line, &headers, body)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Stops the hub as an operator would and gives its exit status and log.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (self.child.wait().unwrap(), log)
    }

    /// Ends the hub as the loss of the process would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Reads the log up to a line that holds `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) {
        let log = BufReader::new(self.child.stderr.as_mut().unwrap());
        assert!(
            log.lines().any(|line| line.unwrap().contains(text)),
            "{text}"
        );
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Already gone in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn ask(port: u16, request_line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut request = format!("{request_line} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Whether a file exists.
pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
