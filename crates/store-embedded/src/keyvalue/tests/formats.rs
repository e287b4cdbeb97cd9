//! Creation, newer formats, and the upgrade of older ones.

use std::fs;

use fieldpost_store::documents::ListRequest;

use super::*;
use crate::keyvalue::rows::{FORMAT, FORMAT_KEY, format_row};
use crate::keyvalue::verify;
use crate::queues::layout as queues;

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let (_folder, path) =
        stored(|writes| writes.put(Space::Meta, FORMAT_KEY, &format_row(FORMAT + 1)));
    let refused = open(&path).map(drop);
    assert!(
        matches!(
            refused,
            Err(OpenError::Newer {
                found: 4,
                supported: 3,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_creation_that_a_crash_ended_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let staging = folder.path().join("documents.new");
    fs::create_dir_all(staging.join("keyspaces")).unwrap();
    fs::write(staging.join("lock"), "").unwrap();
    fs::write(staging.join("0.jnl"), [0; 100]).unwrap();
    let store = open(&path).unwrap();
    put(&store, "first").unwrap();
    assert!(!staging.exists());
}

#[test]
fn a_store_of_format_1_is_upgraded_when_it_is_opened() {
    let (folder, path) = format_1();
    assert_eq!(verify(&path).unwrap(), [""; 0], "as it is");
    assert_eq!(format(&path), 1);
    upgraded(&path);
    assert_eq!(format(&path), FORMAT);
    assert!(!folder.path().join("documents.upgrade").exists());
    // The second time there is nothing to do.
    let store = open(&path).unwrap();
    assert_eq!(messages(&store, "q").unwrap().len(), 1);
    close(&store);
}

#[test]
fn a_store_of_format_2_is_upgraded_when_it_is_opened() {
    let (_folder, path) = fixture("format-2");
    assert_eq!(verify(&path).unwrap(), [""; 0], "as it is");
    assert_eq!(format(&path), 2);
    let store = open(&path).unwrap();
    let found: Vec<_> = messages(&store, "q").unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|message| (message.sequence, message.delivery_count))
        .collect();
    assert_eq!(found, [(1, 1), (2, 0)]);
    assert_eq!(store.queues.lane(LANE).last, 3);
    assert_eq!(
        operate(&store, enqueue("q", 5)).unwrap(),
        OperationResult::Enqueued { sequence: 5 }
    );
    close(&store);
    assert_eq!(format(&path), FORMAT);
    assert_eq!(verify(&path).unwrap(), [""; 0]);
    // From then on a lane's row that is missing is noticed.
    let engine = FjallEngine::open_as_it_is(&path).unwrap();
    let mut writes = Writes::default();
    writes.remove(Space::Meta, |key| {
        key.extend_from_slice(&queues::lane_key(LANE));
    });
    engine.apply(&writes).unwrap();
    drop(engine);
    let refused = open(&path).map(drop);
    assert!(
        matches!(refused, Err(OpenError::Damaged { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_upgrade_that_a_crash_ended_is_gone_on_with() {
    let tables = "0\n1\n2\n3\n4\n5\n";
    // In front of the note, behind it, with the first table half made, and with all tables.
    let check = |prepare: &dyn Fn(&Path, &Path)| {
        let (folder, path) = format_1();
        prepare(&folder.path().join("documents.upgrade"), &path);
        upgraded(&path);
        assert!(!folder.path().join("documents.upgrade").exists());
    };
    check(&|_, path| {
        fs::write(path.with_extension("upgrade.new"), "0\n1").unwrap();
    });
    check(&|note, _| fs::write(note, tables).unwrap());
    check(&|note, path| {
        fs::write(note, tables).unwrap();
        fs::create_dir(path.join("keyspaces/6")).unwrap();
    });
    check(&|note, path| {
        let engine = FjallEngine::open_as_it_is(path).unwrap();
        engine.make_tables(path).unwrap();
        fs::write(note, tables).unwrap();
    });
    // Everything is done but taking the note away.
    check(&|note, path| {
        close(&open(path).unwrap());
        fs::write(note, tables).unwrap();
    });
}

#[test]
fn what_an_upgrade_left_behind_excuses_no_missing_table() {
    let (folder, path) = format_1();
    let note = folder.path().join("documents.upgrade");
    fs::write(note, "0\n1\n2\n3\n4\n5\n").unwrap();
    fs::remove_file(path.join("keyspaces/3/current")).unwrap();
    let refused = open(&path).map(drop);
    assert!(
        matches!(refused, Err(OpenError::Damaged { .. })),
        "{refused:?}"
    );
    assert!(path.join("keyspaces/3").exists(), "nothing was removed");
}

/// Opens a store of format 1, or of one on the way, and finds what was in it and room for queues.
fn upgraded(path: &Path) {
    let store = open(path).unwrap();
    let page = block_on(store.documents.list(ListRequest {
        collection: DEVICES,
        prefix: Bytes::new(),
        after: None,
        limit: 10,
    }));
    let documents = page.unwrap().documents;
    let found: Vec<_> = documents
        .iter()
        .map(|document| (&document.key[..], document.revision, &document.value[..]))
        .collect();
    let expected: [(&[u8], u64, &[u8]); 3] = [
        (b"a", 1, b"{\"n\":0}"),
        (b"b", 2, b"{\"n\":1}"),
        (b"c", 3, b"{\"n\":2}"),
    ];
    assert_eq!(found, expected);
    assert_eq!(store.documents.counts(DEVICES), [(0, 2), (1, 1)]);
    assert_eq!(put(&store, "new").unwrap(), [ChangeResult::Done(6)]);
    assert_eq!(
        operate(&store, enqueue("q", 1)).unwrap(),
        OperationResult::Enqueued { sequence: 1 }
    );
    close(&store);
    assert_eq!(verify(path).unwrap(), [""; 0]);
}

/// A copy of a store that the last version with format 1 wrote: documents `a`, `b` and `c` in
/// collection 1, and one that is deleted.
fn format_1() -> (TempDir, PathBuf) {
    fixture("format-1")
}

/// A copy of a store that an earlier version wrote. That of format 2 holds what [`stored`] puts into
/// one.
fn fixture(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    copy(&data.join(name).join("documents"), &path);
    (folder, path)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn format(path: &Path) -> u32 {
    let engine = FjallEngine::open_as_it_is(path).unwrap();
    crate::keyvalue::load::format(path, &*engine.snapshot()).unwrap()
}
