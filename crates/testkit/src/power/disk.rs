//! What a disk holds, and what the system has not brought to it yet.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::trace::Call;

pub(super) const PAGE: usize = 4096;

/// A file or folder; its place among all that there ever were.
pub(super) type Inode = usize;

/// What a sync promises besides what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promises {
    /// Nothing. Names of one folder may come to the disk in any order.
    Posix,
    /// As ext4, XFS and Btrfs: of what is synced also the names that lead to it. Names of one
    /// folder come in order.
    Journaled,
}

/// A file system as a system sees it that loses power at some time.
pub(super) struct Disk {
    pub(super) promises: Promises,
    folder: PathBuf,
    pub(super) nodes: Vec<Node>,
    open: HashMap<i32, Open>,
    /// How many changes of a file or folder will be durable after the sync of a thread.
    syncs: HashMap<u32, usize>,
}

pub(super) enum Node {
    File(File),
    Folder(Folder),
}

#[derive(Default)]
pub(super) struct File {
    pub(super) durable: Content,
    pub(super) pending: Vec<Change>,
    /// How many changes are durable.
    synced: usize,
    /// With all that is pending.
    length: u64,
}

pub(super) enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    SetLength(u64),
}

/// Bytes; pages that were never written are zero.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) length: u64,
    pub(super) pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

#[derive(Default)]
pub(super) struct Folder {
    pub(super) durable: BTreeMap<OsString, Inode>,
    pub(super) pending: Vec<Renaming>,
    /// How many steps are durable.
    synced: usize,
    /// With all that is pending.
    pub(super) now: BTreeMap<OsString, Inode>,
}

/// One step that a folder takes as a whole.
pub(super) struct Renaming {
    pub(super) removed: Option<OsString>,
    pub(super) added: Option<(OsString, Inode)>,
}

struct Open {
    inode: Inode,
    offset: u64,
    append: bool,
}

impl Content {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::SetLength(length) => self.set_length(*length),
        }
    }

    pub(super) fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let within = usize::try_from(at % PAGE as u64).unwrap();
            let (now, later) = data.split_at(data.len().min(PAGE - within));
            let number = at / PAGE as u64;
            at += now.len() as u64;
            data = later;
            if now == [0; PAGE] {
                self.pages.remove(&number);
                continue;
            }
            let page = self.pages.entry(number);
            let page = page.or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + now.len()].copy_from_slice(now);
        }
        self.length = self.length.max(at);
    }

    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            let kept = length.div_ceil(PAGE as u64);
            self.pages.split_off(&kept);
            let within = usize::try_from(length % PAGE as u64).unwrap();
            if within > 0
                && let Some(page) = self.pages.get_mut(&(length / PAGE as u64))
            {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.length = length;
    }
}

impl Folder {
    pub(super) fn apply(entries: &mut BTreeMap<OsString, Inode>, step: &Renaming) {
        if let Some(removed) = &step.removed {
            entries.remove(removed);
        }
        if let Some((name, inode)) = &step.added {
            entries.insert(name.clone(), *inode);
        }
    }
}

impl Disk {
    /// A disk on which everything in `folder` is durable, and as it is in `like` now.
    pub(super) fn of(folder: &Path, like: &Path, promises: Promises) -> Self {
        let mut disk = Self {
            promises,
            folder: folder.to_owned(),
            nodes: Vec::new(),
            open: HashMap::new(),
            syncs: HashMap::new(),
        };
        disk.load(like);
        disk
    }

    fn load(&mut self, path: &Path) -> Inode {
        let inode = self.nodes.len();
        if !path.is_dir() {
            let bytes = fs::read(path).unwrap();
            let mut file = File::default();
            file.durable.write(0, &bytes);
            file.length = file.durable.length;
            self.nodes.push(Node::File(file));
            return inode;
        }
        self.nodes.push(Node::Folder(Folder::default()));
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let child = self.load(&entry.path());
            entries.insert(entry.file_name(), child);
        }
        let folder = self.folder_mut(inode);
        folder.durable.clone_from(&entries);
        folder.now = entries;
        inode
    }

    /// Does what a process did.
    pub(super) fn apply(&mut self, call: &Call) {
        match call {
            Call::Open {
                path,
                descriptor,
                create,
                truncate,
                append,
            } => {
                let inode = match self.find(path) {
                    Some(inode) => inode,
                    None => {
                        assert!(*create, "{path:?} is not there");
                        self.add(path, Node::File(File::default()))
                    }
                };
                if *truncate && self.file(inode).length > 0 {
                    self.change(inode, Change::SetLength(0));
                }
                let open = Open {
                    inode,
                    offset: 0,
                    append: *append,
                };
                self.open.insert(*descriptor, open);
            }
            Call::Write { descriptor, data } => {
                let open = self.open.get_mut(descriptor).expect("it was opened");
                let (inode, append) = (open.inode, open.append);
                let offset = if append {
                    self.file(inode).length
                } else {
                    let offset = open.offset;
                    open.offset += data.len() as u64;
                    offset
                };
                let data = Arc::clone(data);
                self.change(inode, Change::Write { offset, data });
            }
            Call::WriteAt {
                descriptor,
                offset,
                data,
            } => {
                let inode = self.open[descriptor].inode;
                let (offset, data) = (*offset, Arc::clone(data));
                self.change(inode, Change::Write { offset, data });
            }
            Call::Reserve { descriptor, length } => {
                let inode = self.open[descriptor].inode;
                if self.file(inode).length < *length {
                    self.change(inode, Change::SetLength(*length));
                }
            }
            Call::Seek {
                descriptor,
                position,
            } => {
                let open = self.open.get_mut(descriptor).expect("it was opened");
                open.offset = *position;
            }
            Call::SetLength { descriptor, length } => {
                let inode = self.open[descriptor].inode;
                self.change(inode, Change::SetLength(*length));
            }
            Call::SyncBegins { descriptor, thread } => {
                let pending = match &self.nodes[self.open[descriptor].inode] {
                    Node::File(file) => file.synced + file.pending.len(),
                    Node::Folder(folder) => folder.synced + folder.pending.len(),
                };
                self.syncs.insert(*thread, pending);
            }
            Call::Sync { descriptor, thread } => {
                let synced = self.syncs.remove(thread).expect("it began");
                self.sync(self.open[descriptor].inode, synced);
            }
            Call::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "within a folder");
                let inode = self.find(from).expect("it was there");
                let folder = self.find(from.parent().unwrap()).unwrap();
                self.step(
                    folder,
                    Renaming {
                        removed: from.file_name().map(OsString::from),
                        added: Some((to.file_name().unwrap().to_owned(), inode)),
                    },
                );
            }
            Call::Unlink { path } | Call::RemoveFolder { path } => {
                let folder = self.find(path.parent().unwrap()).unwrap();
                self.step(
                    folder,
                    Renaming {
                        removed: path.file_name().map(OsString::from),
                        added: None,
                    },
                );
            }
            Call::MakeFolder { path } => {
                self.add(path, Node::Folder(Folder::default()));
            }
            Call::Note(_) => {}
            Call::End => {
                self.open.clear();
                self.syncs.clear();
            }
        }
    }

    /// What a path or descriptor leads to, said from the folder on; for people.
    pub(super) fn name_of(&self, descriptor: i32) -> String {
        let Some(open) = self.open.get(&descriptor) else {
            return "?".to_owned();
        };
        self.path_of(open.inode, 0)
            .unwrap_or_else(|| "?".to_owned())
    }

    fn path_of(&self, wanted: Inode, at: Inode) -> Option<String> {
        if wanted == at {
            return Some(String::new());
        }
        let Node::Folder(folder) = &self.nodes[at] else {
            return None;
        };
        folder.now.iter().find_map(|(name, inode)| {
            let rest = self.path_of(wanted, *inode)?;
            Some(format!("/{}{rest}", name.to_string_lossy()))
        })
    }

    /// What a call that was under way when its process was killed has done to the folder itself.
    pub(super) fn done_of(&self, call: &Call) -> Option<Call> {
        let done = match call {
            Call::Open {
                path,
                create,
                truncate,
                ..
            } => {
                let known = self.find(path).map(|inode| self.file(inode).length);
                match (known, fs::metadata(path)) {
                    (None, Ok(_)) => *create,
                    (Some(length), Ok(now)) => *truncate && now.len() != length,
                    _ => false,
                }
            }
            Call::Write { descriptor, data } => {
                let open = &self.open[descriptor];
                let offset = if open.append {
                    self.file(open.inode).length
                } else {
                    open.offset
                };
                let written = self.written(*descriptor, offset, data)?;
                return Some(Call::Write {
                    descriptor: *descriptor,
                    data: written,
                });
            }
            Call::WriteAt {
                descriptor,
                offset,
                data,
            } => {
                return Some(Call::WriteAt {
                    descriptor: *descriptor,
                    offset: *offset,
                    data: self.written(*descriptor, *offset, data)?,
                });
            }
            Call::Reserve { descriptor, length } => self.real_length(*descriptor) >= *length,
            Call::SetLength { descriptor, length } => self.real_length(*descriptor) == *length,
            Call::Rename { from, .. } => !from.exists(),
            Call::Unlink { path } | Call::RemoveFolder { path } => !path.exists(),
            Call::MakeFolder { path } => path.exists(),
            Call::Seek { .. }
            | Call::SyncBegins { .. }
            | Call::Sync { .. }
            | Call::Note(_)
            | Call::End => false,
        };
        done.then(|| call.clone())
    }

    /// What the folder itself has of a write, from its beginning on; none when there is nothing.
    fn written(&self, descriptor: i32, offset: u64, data: &[u8]) -> Option<Arc<[u8]>> {
        let real = fs::read(self.real_path(descriptor)).unwrap();
        let real = real.get(usize::try_from(offset).unwrap()..);
        let same = real.unwrap_or_default().iter().zip(data);
        let written = same.take_while(|(real, data)| real == data).count();
        (written > 0).then(|| data[..written].into())
    }

    fn real_length(&self, descriptor: i32) -> u64 {
        fs::metadata(self.real_path(descriptor)).unwrap().len()
    }

    fn real_path(&self, descriptor: i32) -> PathBuf {
        let name = self.name_of(descriptor);
        self.folder.join(name.trim_start_matches('/'))
    }

    /// What a path leads to.
    pub(super) fn find(&self, path: &Path) -> Option<Inode> {
        let rest = path.strip_prefix(&self.folder).unwrap();
        let mut inode = 0;
        for name in rest {
            let Node::Folder(folder) = &self.nodes[inode] else {
                return None;
            };
            inode = *folder.now.get(name)?;
        }
        Some(inode)
    }

    /// What a process sees in a file.
    pub(super) fn seen(&self, inode: Inode) -> Content {
        let file = self.file(inode);
        let mut content = file.durable.clone();
        for change in &file.pending {
            content.apply(change);
        }
        content
    }

    /// Panics unless what processes see is what is really there.
    pub(super) fn compare(&self, path: &Path, inode: Inode) {
        let folder = match &self.nodes[inode] {
            Node::File(_) => {
                let content = self.seen(inode);
                let real = fs::read(path).unwrap();
                assert_eq!(content.length, real.len() as u64, "{path:?}");
                let mut expected = vec![0; real.len()];
                for (number, page) in &content.pages {
                    let at = usize::try_from(*number).unwrap() * PAGE;
                    let length = PAGE.min(real.len() - at);
                    expected[at..at + length].copy_from_slice(&page[..length]);
                }
                assert!(real == expected, "{path:?} is not as recorded");
                return;
            }
            Node::Folder(folder) => folder,
        };
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort_unstable();
        assert!(folder.now.keys().eq(&names), "{path:?} has {names:?}");
        for (name, inode) in &folder.now {
            self.compare(&path.join(name), *inode);
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> Inode {
        let inode = self.nodes.len();
        self.nodes.push(node);
        let folder = self.find(path.parent().unwrap()).expect("a folder for it");
        let name = path.file_name().unwrap().to_owned();
        self.step(
            folder,
            Renaming {
                removed: None,
                added: Some((name, inode)),
            },
        );
        inode
    }

    fn step(&mut self, inode: Inode, step: Renaming) {
        let folder = self.folder_mut(inode);
        Folder::apply(&mut folder.now, &step);
        folder.pending.push(step);
    }

    fn change(&mut self, inode: Inode, change: Change) {
        let Node::File(file) = &mut self.nodes[inode] else {
            panic!("a folder is no file");
        };
        file.length = match &change {
            Change::Write { offset, data } => file.length.max(offset + data.len() as u64),
            Change::SetLength(length) => *length,
        };
        file.pending.push(change);
    }

    fn sync(&mut self, inode: Inode, synced: usize) {
        match &mut self.nodes[inode] {
            Node::File(file) => {
                let more = synced.saturating_sub(file.synced);
                for change in file.pending.drain(..more) {
                    file.durable.apply(&change);
                }
                file.synced += more;
            }
            Node::Folder(folder) => {
                let more = synced.saturating_sub(folder.synced);
                for step in folder.pending.drain(..more) {
                    Folder::apply(&mut folder.durable, &step);
                }
                folder.synced += more;
            }
        }
        if self.promises == Promises::Journaled {
            self.sync_names(inode);
        }
    }

    /// Makes the names durable that lead to something.
    fn sync_names(&mut self, wanted: Inode) {
        for inode in 0..self.nodes.len() {
            let Node::Folder(folder) = &mut self.nodes[inode] else {
                continue;
            };
            let leads = |step: &Renaming| matches!(step.added, Some((_, to)) if to == wanted);
            let Some(last) = folder.pending.iter().rposition(leads) else {
                continue;
            };
            let step = folder.pending.remove(last);
            // Whatever had that name before is gone, and its own older names with the newest.
            let name = step.added.as_ref().map(|(name, _)| name);
            for earlier in folder.pending.iter_mut().take(last) {
                earlier.removed.take_if(|removed| Some(&*removed) == name);
                earlier.added.take_if(|(added, _)| Some(&*added) == name);
            }
            let steps = folder.pending.len();
            folder.pending.retain(|other| !leads(other));
            folder.synced += 1 + steps - folder.pending.len();
            Folder::apply(&mut folder.durable, &step);
            self.sync_names(inode);
            return;
        }
    }

    fn file(&self, inode: Inode) -> &File {
        match &self.nodes[inode] {
            Node::File(file) => file,
            Node::Folder(_) => panic!("a folder is no file"),
        }
    }

    fn folder_mut(&mut self, inode: Inode) -> &mut Folder {
        match &mut self.nodes[inode] {
            Node::Folder(folder) => folder,
            Node::File(_) => panic!("a file is no folder"),
        }
    }
}
