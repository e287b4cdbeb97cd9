//! What was found broken, by exact range.

use std::fmt;

use fieldpost_model::{PartitionId, SequenceNumber, StreamId};

/// A stretch of a file that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the data directory's part that it belongs to.
    pub file: String,
    /// The first byte of the stretch.
    pub from: u64,
    /// The byte behind the stretch.
    pub to: u64,
    /// What is wrong.
    pub what: String,
    /// Records that cannot be read any more, as far as is known.
    pub lost: Vec<LostRecords>,
}

/// Consecutive records of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRecords {
    /// The stream.
    pub stream: StreamId,
    /// The partition.
    pub partition: PartitionId,
    /// The first of them.
    pub from: SequenceNumber,
    /// The number behind the last of them.
    pub to: SequenceNumber,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            from,
            to,
            what,
            lost,
        } = self;
        write!(f, "{file}, bytes {from} to {to}: {what}")?;
        for (at, records) in lost.iter().enumerate() {
            f.write_str(if at == 0 { "; lost: " } else { ", " })?;
            records.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for LostRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stream != StreamId::BUILT_IN {
            write!(f, "stream {} ", self.stream.0)?;
        }
        let last = self.to.saturating_sub(1);
        write!(
            f,
            "partition {} sequence numbers {} to {last}",
            self.partition, self.from
        )
    }
}
