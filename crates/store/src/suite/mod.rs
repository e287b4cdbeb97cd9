//! The contract as tests that every engine runs.
//!
//! An engine implements [`Harness`] in its own tests and calls [`log_contract!`](crate::log_contract),
//! [`documents_contract!`](crate::documents_contract) and [`queues_contract!`](crate::queues_contract)
//! there; each check becomes a test. The random histories compare an engine with a model of a few
//! lines.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that does not get what it expects stops there"
)]

pub mod documents;
pub mod documents_history;
pub mod log;
pub mod log_history;
pub mod outcomes;
pub mod queues;
pub mod queues_closing;
pub mod queues_expiry;
pub mod queues_history;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use fieldpost_model::{Clock, Partitioning, Timestamp};

use crate::Store;

/// Makes stores of one engine.
pub trait Harness: Sync {
    /// A new and empty store. What belongs to it goes when the subject is dropped.
    fn create(&self, setup: Setup) -> Box<dyn Subject>;

    /// How many random histories are tried; fewer where a store is dear to make.
    fn cases(&self) -> u32 {
        256
    }
}

/// How a store is to be made.
#[derive(Clone)]
pub struct Setup {
    /// The partitions.
    pub partitioning: Partitioning,
    /// The store's time.
    pub clock: Arc<SteppedClock>,
    /// How many deletions the change feed remembers.
    pub deletions_kept: usize,
}

/// One store under test.
pub trait Subject {
    /// Its facets. Nobody keeps them over a call of [`Subject::reopen`].
    fn store(&self) -> Store;

    /// Closes the store and opens it again; false where nothing outlives closing.
    fn reopen(&mut self) -> bool;

    /// Makes the log drop what its retention lets go, now; false where that cannot be asked for.
    fn housekeep(&mut self) -> bool {
        false
    }
}

/// A clock that moves only when it is told to.
#[derive(Debug)]
pub struct SteppedClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicI64,
}

impl SteppedClock {
    /// Begins on 2027-01-15.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            wall_ms: AtomicI64::new(1_800_000_000_000),
            monotonic_ms: AtomicI64::new(0),
        })
    }

    /// Lets time pass.
    pub fn advance(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap();
        self.wall_ms.fetch_add(millis, Ordering::Relaxed);
        self.monotonic_ms.fetch_add(millis, Ordering::Relaxed);
    }

    /// Sets the wall clock back, as an operator or a time server does.
    pub fn set_back(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap();
        self.wall_ms.fetch_sub(millis, Ordering::Relaxed);
    }
}

impl Clock for SteppedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        let millis = self.monotonic_ms.load(Ordering::Relaxed);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

/// Waits for a future on this thread. Engines answer from threads of their own and need no runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

fn setup(partitions: u16) -> Setup {
    Setup {
        partitioning: Partitioning::new(partitions).unwrap(),
        clock: SteppedClock::new(),
        deletions_kept: 1_000,
    }
}

/// Makes a test of each named check.
#[doc(hidden)]
#[macro_export]
macro_rules! contract_tests {
    ($harness:expr, $module:path, [$($check:ident),* $(,)?]) => {
        $(
            #[test]
            fn $check() {
                use $module as checks;
                checks::$check(&$harness);
            }
        )*
    };
}

/// Makes a test of each check of the event log: `log_contract!(harness)`, in a module of its own.
#[macro_export]
macro_rules! log_contract {
    ($harness:expr) => {
        $crate::contract_tests!(
            $harness,
            $crate::suite::log,
            [
                records_are_numbered_from_zero_in_each_partition,
                records_of_any_size_are_kept_as_they_are,
                batches_complete_in_the_order_of_their_submission,
                many_appenders_share_the_log,
                one_batch_serves_several_streams,
                reads_stop_at_their_bounds,
                reads_outside_of_what_is_kept,
                recent_reads_agree_with_reads,
                times_are_found,
                store_time_never_goes_back,
                watches_ring_for_their_partitions,
                closing_keeps_what_was_submitted,
                a_reopened_log_goes_on_where_it_was,
                retention_moves_the_first_record,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::log_history,
            [random_log_histories_agree_with_the_model]
        );
    };
}

/// Makes a test of each check of the documents: `documents_contract!(harness)`, in a module of its
/// own.
#[macro_export]
macro_rules! documents_contract {
    ($harness:expr) => {
        $crate::contract_tests!(
            $harness,
            $crate::suite::documents,
            [
                documents_are_read_back,
                conditions_decide_each_change_alone,
                later_changes_of_a_batch_see_the_earlier_ones,
                revisions_grow_over_all_collections,
                classes_are_counted,
                lists_are_paged_in_key_order,
                the_feed_shows_each_document_once_at_its_newest_change,
                the_feed_is_paged,
                old_deletions_leave_the_feed,
                keys_and_values_have_bounds,
                concurrent_conditional_changes_have_one_winner,
                an_abandoned_answer_abandons_no_change,
                closing_documents_keeps_what_was_submitted,
                reopened_documents_are_the_same,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::documents_history,
            [random_document_histories_agree_with_the_model]
        );
    };
}

/// Makes a test of each check of the device queues: `queues_contract!(harness)`, in a module of its
/// own.
#[macro_export]
macro_rules! queues_contract {
    ($harness:expr) => {
        $crate::contract_tests!(
            $harness,
            $crate::suite::queues,
            [
                messages_wait_in_the_order_of_their_numbers,
                messages_of_any_size_are_kept_as_they_are,
                queues_with_similar_names_are_apart,
                queues_are_read_in_pages,
                queues_are_bounded_by_their_depth,
                marks_let_a_thing_happen_once,
                settled_messages_are_gone,
                operations_of_a_batch_stand_alone,
                delivery_counts_are_kept,
                dropped_queues_leave_nothing,
                large_queues_are_dropped_oldest_first,
                names_and_messages_have_bounds,
                each_message_is_settled_once,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::queues_expiry,
            [
                messages_fall_due_in_the_order_of_expiry,
                due_messages_are_read_in_pages,
                the_next_expiry_follows_what_is_there,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::queues_closing,
            [
                an_abandoned_answer_abandons_no_operation,
                closing_queues_keeps_what_was_submitted,
                reopened_queues_are_the_same,
                numbers_are_never_given_twice,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::outcomes,
            [
                settling_writes_outcomes,
                lanes_number_their_records_from_one,
                lanes_are_forgotten_from_the_front,
                single_records_are_removed,
                lanes_are_read_in_pages,
                a_queue_finds_its_own_records,
                records_have_bounds,
                reopened_lanes_are_the_same,
            ]
        );
        $crate::contract_tests!(
            $harness,
            $crate::suite::queues_history,
            [random_queue_histories_agree_with_the_model]
        );
    };
}
