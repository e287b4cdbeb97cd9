//! The system calls of a process that change files, with their data, in the order in which they
//! ended. strace writes them down.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Calls that the model of the disk knows, and all others that could change a file behind its back.
const TRACED: &str = "trace=open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,\
    fdatasync,ftruncate,truncate,fallocate,lseek,rename,renameat,renameat2,unlink,unlinkat,mkdir,\
    mkdirat,rmdir,link,linkat,symlink,symlinkat,dup,dup2,dup3,fcntl,mmap,msync,sync,syncfs,\
    sync_file_range,copy_file_range,sendfile,splice,io_uring_setup";

/// No write is longer.
const STRING_BYTES_MAX: &str = "4194304";

/// Where a process says what it promised, a line in one write.
pub const NOTES: &str = "/dev/null";

/// What a process did to files.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Open {
        path: PathBuf,
        descriptor: i32,
        create: bool,
        truncate: bool,
        append: bool,
    },
    Write {
        descriptor: i32,
        data: Arc<[u8]>,
    },
    /// Without regard to where its descriptor stands.
    WriteAt {
        descriptor: i32,
        offset: u64,
        data: Arc<[u8]>,
    },
    Seek {
        descriptor: i32,
        position: u64,
    },
    SetLength {
        descriptor: i32,
        length: u64,
    },
    /// A file is at least so long.
    Reserve {
        descriptor: i32,
        length: u64,
    },
    /// What was there before it began is durable when [`Call::Sync`] comes.
    SyncBegins {
        descriptor: i32,
        thread: u32,
    },
    Sync {
        descriptor: i32,
        thread: u32,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    MakeFolder {
        path: PathBuf,
    },
    RemoveFolder {
        path: PathBuf,
    },
    /// It said something.
    Note(String),
    /// It is gone, and with it its descriptors.
    End,
}

/// What was called.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) calls: Vec<Call>,
    /// Calls under way when the process was killed: each happened, or did not.
    pub(super) unfinished: Vec<Call>,
}

/// Whether strace is here and may trace.
#[must_use]
pub fn is_possible() -> bool {
    let mut command = Command::new("strace");
    command.args(["-qq", "--seccomp-bpf", "-f", "-o", "/dev/null", "true"]);
    command
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A process to be recorded.
pub struct Process {
    /// What is run.
    pub program: PathBuf,
    /// With these arguments.
    pub arguments: Vec<OsString>,
    /// With these in its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whose calls count.
    pub whose: Whose,
    /// Whether it is killed at a note.
    pub kill: Box<dyn FnMut(&str) -> bool>,
}

/// Whose calls change the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The process's own.
    Own,
    /// Those of one that it starts; from its own first thread come notes alone.
    Child,
}

/// Runs a process and takes down what it does to files in `folder`.
pub(super) fn record(folder: &Path, mut process: Process) -> Trace {
    let mut command = Command::new("strace");
    command.args(["-qq", "-f", "--seccomp-bpf", "-y", "-xx"]);
    command.args(["-s", STRING_BYTES_MAX, "-e", TRACED, "-e", "signal=none"]);
    command.args(["-o", "/dev/stdout"]);
    command.arg(process.program).args(process.arguments);
    command.envs(process.environment).stdout(Stdio::piped());
    let mut strace = command.spawn().unwrap();
    let mut parser = Parser {
        folder: folder.to_owned(),
        whose: Some(process.whose),
        ..Parser::default()
    };
    let mut output = BufReader::with_capacity(1 << 20, strace.stdout.take().unwrap());
    let mut line = Vec::new();
    let mut seen = 0;
    let mut killed = false;
    while output.read_until(b'\n', &mut line).unwrap() > 0 {
        parser.take(line.strip_suffix(b"\n").expect("whole lines"));
        line.clear();
        for call in parser.trace.calls.get(seen..).unwrap() {
            if let Call::Note(note) = call
                && !killed
                && (process.kill)(note)
            {
                killed = true;
                kill_process(parser.process.unwrap());
            }
        }
        seen = parser.trace.calls.len();
    }
    finish(strace, killed);
    parser.end()
}

fn kill_process(process: u32) {
    let mut kill = Command::new("kill");
    let status = kill.args(["-KILL", &process.to_string()]).status();
    assert!(status.unwrap().success());
}

fn finish(mut strace: Child, killed: bool) {
    let status = strace.wait().unwrap();
    assert!(status.success() || killed, "the process: {status}");
}

/// From the lines of strace to calls.
#[derive(Default)]
struct Parser {
    folder: PathBuf,
    whose: Option<Whose>,
    trace: Trace,
    /// The process's own thread, which comes first.
    process: Option<u32>,
    /// The first part of a line, by thread.
    open: HashMap<u32, Vec<u8>>,
}

impl Parser {
    fn take(&mut self, line: &[u8]) {
        let (thread, rest) = split_once(line, b" ").unwrap();
        let thread: u32 = text(thread).parse().unwrap();
        self.process.get_or_insert(thread);
        let rest = rest.trim_ascii_start();
        if rest.starts_with(b"+++") || rest.starts_with(b"---") {
            return;
        }
        let unfinished = rest.strip_suffix(b" <unfinished ...>");
        // So it says of a process that was killed.
        if let Some(begun) = unfinished.or(rest.strip_suffix(b" <detached ...>")) {
            self.begin(thread, begun);
            self.open.insert(thread, begun.to_vec());
            return;
        }
        if let Some(resumed) = rest.strip_prefix(b"<... ") {
            let (_, resumed) = split_once(resumed, b" resumed>").unwrap();
            let begun = self.open.remove(&thread).expect("it began");
            self.whole(thread, &[&begun, resumed].concat());
            return;
        }
        self.begin(thread, rest);
        self.whole(thread, rest);
    }

    /// Takes note that a sync begins.
    fn begin(&mut self, thread: u32, line: &[u8]) {
        if self.is_of_bystander(thread) {
            return;
        }
        let (name, arguments) = split_once(line, b"(").unwrap();
        if matches!(name, b"fsync" | b"fdatasync") {
            let (descriptor, path) = descriptor(arguments.strip_suffix(b")").unwrap_or(arguments));
            if self.is_ours(&path) {
                let call = Call::SyncBegins { descriptor, thread };
                self.trace.calls.push(call);
            }
        }
    }

    fn whole(&mut self, thread: u32, line: &[u8]) {
        let at = rfind(line, b" = ").unwrap_or_else(|| panic!("no result: {}", text(line)));
        let (call, result) = line.split_at(at);
        let call = call.trim_ascii_end().strip_suffix(b")").unwrap();
        let result = result.get(3..).unwrap();
        // A process that is killed leaves some.
        if result.starts_with(b"-1 ") || result.starts_with(b"?") {
            if result.starts_with(b"?") {
                let done = self.parse(thread, call, None);
                self.trace.unfinished.extend(done);
            }
            return;
        }
        let done = self.parse(thread, call, Some(result));
        self.trace.calls.extend(done);
    }

    /// What a call did, if it is of interest. Without a result it is taken to have succeeded.
    fn parse(&self, thread: u32, call: &[u8], result: Option<&[u8]>) -> Option<Call> {
        let (name, arguments) = split_once(call, b"(").unwrap();
        let arguments = split(arguments);
        if name != b"write" && self.is_of_bystander(thread) {
            return None;
        }
        let refuse = |path: &Path| {
            assert!(
                !self.is_ours(path),
                "the model of the disk does not know {}",
                text(call)
            );
            None
        };
        let ours = |at: usize| {
            let (descriptor, path) = descriptor(arguments[at]);
            self.is_ours(&path).then_some(descriptor)
        };
        let number = || -> u64 {
            let result = result.expect("a result");
            let end = result.iter().position(|byte| !byte.is_ascii_digit());
            text(&result[..end.unwrap_or(result.len())])
                .parse()
                .unwrap()
        };
        match text(name) {
            "openat" => {
                let mut path = self.path(arguments[0], arguments[1]);
                if path.starts_with("/proc/self/fd")
                    && let Some(result) = result
                {
                    path = descriptor(result).1;
                }
                let flags: Vec<&str> = text(arguments[2]).split('|').collect();
                if !self.is_ours(&path) {
                    return None;
                }
                Some(Call::Open {
                    path,
                    // Nobody will use what was opened by a killed process.
                    descriptor: result.map_or(-1, |_| i32::try_from(number()).unwrap()),
                    create: flags.contains(&"O_CREAT"),
                    truncate: flags.contains(&"O_TRUNC"),
                    append: flags.contains(&"O_APPEND"),
                })
            }
            "write" => {
                let (descriptor, path) = descriptor(arguments[0]);
                if path == Path::new(NOTES) {
                    let note = unhex(arguments[1]);
                    return result.map(|_| Call::Note(text(&note).to_owned()));
                }
                self.is_ours(&path).then(|| {
                    let mut data = unhex(arguments[1]);
                    if result.is_some() {
                        data.truncate(usize::try_from(number()).unwrap());
                    }
                    let data = data.into();
                    Call::Write { descriptor, data }
                })
            }
            "pwrite64" | "pwritev" => ours(0).map(|descriptor| {
                let (parts, offset) = match arguments[1..] {
                    [data, _, offset] if name == b"pwrite64" => (vec![data], offset),
                    [ref parts @ .., _, offset] => (parts.to_vec(), offset),
                    _ => panic!("{}", text(call)),
                };
                let mut data: Vec<u8> = parts.iter().flat_map(|part| bytes_of(part)).collect();
                if result.is_some() {
                    data.truncate(usize::try_from(number()).unwrap());
                }
                Call::WriteAt {
                    descriptor,
                    offset: text(offset).parse().unwrap(),
                    data: data.into(),
                }
            }),
            "fallocate" => ours(0).map(|descriptor| {
                assert_eq!(arguments[1..3], [&b"0"[..], b"0"], "{}", text(call));
                Call::Reserve {
                    descriptor,
                    length: text(arguments[3]).parse().unwrap(),
                }
            }),
            // Asks only.
            "lseek" if arguments[1..] == [&b"0"[..], b"SEEK_CUR"] => None,
            "lseek" => ours(0)
                .filter(|_| result.is_some())
                .map(|descriptor| Call::Seek {
                    descriptor,
                    position: number(),
                }),
            "ftruncate" => ours(0).map(|descriptor| Call::SetLength {
                descriptor,
                length: text(arguments[1]).parse().unwrap(),
            }),
            // One that did not end promised nothing.
            "fsync" | "fdatasync" => ours(0)
                .filter(|_| result.is_some())
                .map(|descriptor| Call::Sync { descriptor, thread }),
            "rename" => {
                let [from, to] = [0, 1].map(|at| self.path(b"AT_FDCWD", arguments[at]));
                self.rename(from, to)
            }
            "renameat" | "renameat2" => {
                if let Some(flags) = arguments.get(4) {
                    assert!(
                        matches!(*flags, b"0" | b"RENAME_NOREPLACE"),
                        "{}",
                        text(call)
                    );
                }
                let from = self.path(arguments[0], arguments[1]);
                let to = self.path(arguments[2], arguments[3]);
                self.rename(from, to)
            }
            "unlink" => self.unlink(self.path(b"AT_FDCWD", arguments[0]), false),
            "rmdir" => self.unlink(self.path(b"AT_FDCWD", arguments[0]), true),
            "unlinkat" => {
                let path = self.path(arguments[0], arguments[1]);
                self.unlink(path, arguments[2] == b"AT_REMOVEDIR")
            }
            "mkdir" => self.make_folder(self.path(b"AT_FDCWD", arguments[0])),
            "mkdirat" => self.make_folder(self.path(arguments[0], arguments[1])),
            "fcntl" => {
                if text(arguments[1]).starts_with("F_DUPFD") {
                    return refuse(&descriptor(arguments[0]).1);
                }
                None
            }
            "mmap" => {
                let shared = text(arguments[3]).contains("MAP_SHARED");
                if shared && text(arguments[2]).contains("PROT_WRITE") {
                    return refuse(&descriptor(arguments[4]).1);
                }
                None
            }
            // These matter where a path or descriptor of ours is among the arguments.
            _ => {
                for argument in arguments {
                    if argument.starts_with(b"\"") {
                        refuse(&self.path(b"AT_FDCWD", argument));
                    } else if argument.contains(&b'<') {
                        refuse(&descriptor(argument).1);
                    }
                }
                None
            }
        }
    }

    fn rename(&self, from: PathBuf, to: PathBuf) -> Option<Call> {
        let ours = [&from, &to].map(|path| self.is_ours(path));
        assert_eq!(ours[0], ours[1], "{from:?} to {to:?}");
        ours[0].then_some(Call::Rename { from, to })
    }

    fn unlink(&self, path: PathBuf, folder: bool) -> Option<Call> {
        self.is_ours(&path).then_some(if folder {
            Call::RemoveFolder { path }
        } else {
            Call::Unlink { path }
        })
    }

    fn make_folder(&self, path: PathBuf) -> Option<Call> {
        self.is_ours(&path).then_some(Call::MakeFolder { path })
    }

    fn is_ours(&self, path: &Path) -> bool {
        path.starts_with(&self.folder)
    }

    /// Whether a thread is of a process that only looks at the folder.
    fn is_of_bystander(&self, thread: u32) -> bool {
        self.whose == Some(Whose::Child) && self.process == Some(thread)
    }

    /// A path that may start at a descriptor.
    fn path(&self, base: &[u8], path: &[u8]) -> PathBuf {
        let path = PathBuf::from(text(&unhex(path)));
        if path.is_absolute() || !base.contains(&b'<') {
            // Whoever means our files says so from the root on.
            return path;
        }
        let joined = descriptor(base).1.join(path);
        assert!(!joined.iter().any(|part| part == ".."), "{joined:?}");
        joined
    }

    fn end(mut self) -> Trace {
        // What has neither a result nor a question mark for one.
        let mut open: Vec<_> = std::mem::take(&mut self.open).into_iter().collect();
        open.sort_unstable();
        for (thread, begun) in open {
            let call = self.parse(thread, &begun, None);
            self.trace.unfinished.extend(call);
        }
        self.trace
    }
}

/// Number and path of `5</path>`; the path of a descriptor that is none is empty.
fn descriptor(argument: &[u8]) -> (i32, PathBuf) {
    let Some((number, rest)) = split_once(argument, b"<") else {
        return (text(argument).parse().unwrap_or(-1), PathBuf::new());
    };
    let end = rest.iter().position(|byte| *byte == b'>').unwrap();
    let path = PathBuf::from(text(&unhex(&rest[..end])));
    (text(number).parse().unwrap_or(-1), path)
}

/// The bytes that a part of a list of `{iov_base="\x41...", iov_len=1}` holds, if it is the first half of
/// such a pair; or of a string.
fn bytes_of(part: &[u8]) -> Vec<u8> {
    match split_once(part, b"iov_base=") {
        Some((_, data)) => unhex(data),
        None if part.starts_with(b"\"") => unhex(part),
        None => Vec::new(),
    }
}

/// The bytes of `"\x41..."`, with or without the quotes.
fn unhex(argument: &[u8]) -> Vec<u8> {
    assert!(!argument.ends_with(b"..."), "a string that was cut");
    let digits = argument.strip_prefix(b"\"").unwrap_or(argument);
    let digits = digits.strip_suffix(b"\"").unwrap_or(digits);
    let value = |digit: u8| match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => panic!("not hexadecimal: {}", text(argument)),
    };
    let chunks = digits.chunks(4);
    chunks
        .map(|chunk| match chunk {
            [b'\\', b'x', high, low] => value(*high) << 4 | value(*low),
            _ => panic!("not hexadecimal: {}", text(argument)),
        })
        .collect()
}

/// Strings and paths are in hexadecimal, so that commas only separate.
fn split(arguments: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = arguments;
    while let Some((part, after)) = split_once(rest, b", ") {
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

fn split_once<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes
        .windows(separator.len())
        .position(|window| window == separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}

fn rfind(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .rposition(|window| window == wanted)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
