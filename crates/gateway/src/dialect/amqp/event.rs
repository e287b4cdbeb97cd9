//! An event as Event Hubs clients receive it.

use bytes::BytesMut;
use fieldpost_amqp::message::{put_map, section};
use fieldpost_model::Timestamp;
use fieldpost_record::{Position, RecordError, RecordView, write_annotations};
use fieldpost_store::log::{Bounds, StoredRecord};

use super::management::{last_offset, number};

/// The state of a partition that a client wants to see with each event.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeMetric {
    last: Option<u64>,
    offset: String,
    enqueued: Timestamp,
    retrieved: Timestamp,
}

impl RuntimeMetric {
    /// The state that `bounds` says a partition has at the time `now`.
    pub(crate) fn of(bounds: &Bounds, now: Timestamp) -> Self {
        let last = bounds.next.checked_sub(1);
        Self {
            last,
            offset: last_offset(last),
            enqueued: bounds.last_enqueued.unwrap_or(Timestamp::NEVER),
            retrieved: now,
        }
    }
}

/// Writes what goes in front of a record's sections into `head`, and returns those sections.
///
/// # Errors
/// When the record cannot be read.
pub(crate) fn put_head<'r>(
    head: &mut BytesMut,
    record: &'r StoredRecord,
    metric: Option<&RuntimeMetric>,
) -> Result<&'r [u8], RecordError> {
    let view = RecordView::parse(&record.data)?;
    if let Some(metric) = metric {
        put_map(head, section::DELIVERY_ANNOTATIONS, |e| {
            e.symbol("last_enqueued_sequence_number");
            e.long(metric.last.map_or(-1, number));
            e.symbol("last_enqueued_offset");
            e.string(&metric.offset);
            e.symbol("last_enqueued_time_utc");
            e.timestamp(metric.enqueued.as_millis());
            e.symbol("runtime_info_retrieval_time_utc");
            e.timestamp(metric.retrieved.as_millis());
        });
    }
    let position = Position {
        sequence: record.sequence,
        enqueued: record.enqueued,
    };
    write_annotations(head, &view, position);
    Ok(view.sections())
}
