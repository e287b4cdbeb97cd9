//! Files of a directory of the operating system.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::direct::{DirectWriter, is_direct};
use super::{File, Files, Space};

/// The files of one directory.
#[derive(Debug)]
pub struct DirectoryFiles {
    path: PathBuf,
    /// Whoever finds it taken writes through the page cache.
    direct: Arc<Mutex<DirectWriter>>,
    handles: AtomicU64,
}

impl DirectoryFiles {
    /// The files of `path`, which is created, for its owner alone, when it is not there.
    ///
    /// # Errors
    /// When the directory can neither be found nor made.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let missing = (path.ancestors()).take_while(|path| !path.as_os_str().is_empty());
        let missing: Vec<_> = missing.take_while(|path| !path.exists()).collect();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        for made in missing {
            sync_name(made)?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            direct: Arc::default(),
            handles: AtomicU64::new(0),
        })
    }

    fn opened(&self, file: fs::File) -> Arc<dyn File> {
        Arc::new(OpenFile {
            file,
            handle: self.handles.fetch_add(1, Ordering::Relaxed),
            direct: Arc::clone(&self.direct),
        })
    }

    fn options() -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

/// Makes the name of a file or directory durable in the directory that it stands in, if this
/// process may read that.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match fs::File::open(parent) {
        Ok(parent) => parent.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

impl Files for DirectoryFiles {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = Self::options()
            .create(true)
            .truncate(true)
            .open(self.path.join(name))?;
        Ok(self.opened(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = Self::options().open(self.path.join(name))?;
        Ok(self.opened(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // Names that are not text are none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let figures = rustix::fs::statvfs(&self.path)?;
        Ok(Space {
            free: figures.f_bavail.saturating_mul(figures.f_frsize),
            total: figures.f_blocks.saturating_mul(figures.f_frsize),
        })
    }
}

struct OpenFile {
    file: fs::File,
    /// Tells open files of a directory apart.
    handle: u64,
    direct: Arc<Mutex<DirectWriter>>,
}

impl File for OpenFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if is_direct(bytes, at)
            && let Ok(mut direct) = self.direct.try_lock()
            && let Some(written) = direct.write_at(self.handle, &self.file, parts, at)?
        {
            return Ok(written);
        }
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::pwritev(&self.file, parts, at)
        })?)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let fallocate = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes)
        });
        match fallocate {
            Ok(()) => Ok(()),
            // Not every file system can reserve; a full disk then shows when the space is written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                if self.bytes()? < bytes {
                    self.file.set_len(bytes)?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
