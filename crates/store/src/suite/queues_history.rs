//! Random histories of device queues, compared with a model.

use std::collections::BTreeMap;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::queues::{Queues, outcomes_of};
use super::{Harness, Subject, block_on, setup};
use crate::queues::{
    DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue, Operation,
    OperationResult, Outcome, OutcomeNumber, QueueName, QueuePage, QueuedMessage,
};

/// Few queues and lanes, so that histories meet; names that begin with each other.
const NAMES: [&[u8]; 4] = [b"a", b"a\0", b"b", b"\xff"];
const LANES: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Batches that are in flight together.
    Apply(Vec<Vec<Planned>>),
    List {
        queue: usize,
        after: Pick,
        bounds: Bounds,
    },
    Due {
        until: i64,
        after: Option<(i64, Pick)>,
        bounds: Bounds,
    },
    Outcomes {
        lane: u8,
        after: u64,
        bounds: Bounds,
        queue: Option<usize>,
    },
    Reopen,
}

/// An operation on messages that are there, or were, as far as the model can foresee.
#[derive(Clone, Debug)]
enum Planned {
    Enqueue {
        queue: usize,
        message: Vec<u8>,
        expires: i64,
        depth_max: u64,
        once: Option<u64>,
    },
    Settle {
        queue: usize,
        message: Pick,
        outcomes: Vec<(u8, Vec<u8>)>,
    },
    SetDeliveryCount {
        queue: usize,
        message: Pick,
        count: u32,
    },
    Drop {
        queue: usize,
    },
    Record {
        lane: u8,
        queue: usize,
        message: Pick,
        record: Vec<u8>,
    },
    Forget {
        lane: u8,
        before_last: u64,
    },
    Remove {
        lane: u8,
        before_last: u64,
    },
}

/// One of a queue's messages, or any number.
#[derive(Clone, Copy, Debug)]
enum Pick {
    Waiting(prop::sample::Index),
    Number(u64),
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    limit: usize,
    bytes_max: usize,
}

#[derive(Clone, Default)]
struct Model {
    queues: BTreeMap<QueueName, Queue>,
    lanes: BTreeMap<Lane, Records>,
    /// The last number that was given.
    sequence: u64,
}

#[derive(Clone, Default)]
struct Queue {
    messages: Vec<QueuedMessage>,
    mark: Option<u64>,
}

#[derive(Clone, Default)]
struct Records {
    kept: Vec<Outcome>,
    last: OutcomeNumber,
}

/// Batches, reads of all kinds and reopening in any order.
pub fn random_queue_histories_agree_with_the_model(harness: &dyn Harness) {
    let config = Config {
        cases: harness.cases(),
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&vec(step(), 1..40), |steps| {
        let mut subject = harness.create(setup(1));
        let mut model = Model::default();
        for step in &steps {
            take(step, &mut *subject, &mut model)?;
        }
        same_state(&subject.store().queues, &model)?;
        subject.reopen();
        same_state(&subject.store().queues, &model)
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..NAMES.len();
    let due_after = prop::option::of((-1i64..6, pick()));
    prop_oneof![
        10 => vec(vec(planned(), 0..8), 1..4).prop_map(Step::Apply),
        2 => (queue.clone(), pick(), bounds())
            .prop_map(|(queue, after, bounds)| Step::List { queue, after, bounds }),
        2 => (-1i64..6, due_after, bounds())
            .prop_map(|(until, after, bounds)| Step::Due { until, after, bounds }),
        2 => (0..LANES, 0u64..30, bounds(), prop::option::of(queue)).prop_map(
            |(lane, after, bounds, queue)| Step::Outcomes { lane, after, bounds, queue }
        ),
        1 => Just(Step::Reopen),
    ]
}

fn planned() -> impl Strategy<Value = Planned> {
    let queue = || 0..NAMES.len();
    let item = || vec(any::<u8>(), 0..30);
    let depth_max = prop_oneof![3 => Just(20u64), 1 => 0u64..6];
    let once = prop::option::weighted(0.3, 0u64..30);
    let outcomes = vec((0..LANES, item()), 0..4);
    prop_oneof![
        10 => (queue(), item(), -1i64..6, depth_max, once).prop_map(
            |(queue, message, expires, depth_max, once)| Planned::Enqueue {
                queue,
                message,
                expires,
                depth_max,
                once,
            }
        ),
        8 => (queue(), pick(), outcomes).prop_map(|(queue, message, outcomes)| Planned::Settle {
            queue,
            message,
            outcomes,
        }),
        3 => (queue(), pick(), any::<u32>()).prop_map(|(queue, message, count)| {
            Planned::SetDeliveryCount { queue, message, count }
        }),
        1 => queue().prop_map(|queue| Planned::Drop { queue }),
        3 => (0..LANES, queue(), pick(), item()).prop_map(|(lane, queue, message, record)| {
            Planned::Record { lane, queue, message, record }
        }),
        2 => (0..LANES, 0u64..8)
            .prop_map(|(lane, before_last)| Planned::Forget { lane, before_last }),
        3 => (0..LANES, 0u64..8)
            .prop_map(|(lane, before_last)| Planned::Remove { lane, before_last }),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        4 => any::<prop::sample::Index>().prop_map(Pick::Waiting),
        1 => (0u64..60).prop_map(Pick::Number),
    ]
}

fn bounds() -> impl Strategy<Value = Bounds> {
    (1usize..6, 0usize..100).prop_map(|(limit, bytes_max)| Bounds { limit, bytes_max })
}

fn take(step: &Step, subject: &mut dyn Subject, model: &mut Model) -> Result<(), TestCaseError> {
    let queues = subject.store().queues;
    match step {
        Step::Apply(batches) => {
            // What is in flight is planned for what is expected to come of it.
            let mut expected = model.clone();
            let mut answers = Vec::new();
            for batch in batches {
                let mut operations = Vec::new();
                for planned in batch {
                    let operation = expected.plan(planned);
                    let result = expected.foresee(&operation);
                    expected.follow(&operation, &result);
                    operations.push(operation);
                }
                answers.push((operations.clone(), queues.apply(operations)));
            }
            for (operations, answer) in answers {
                let results = block_on(answer).unwrap();
                prop_assert_eq!(results.len(), operations.len());
                for (operation, result) in operations.iter().zip(&results) {
                    let foreseen = model.foresee(operation);
                    prop_assert!(
                        is_allowed(&foreseen, result),
                        "{result:?}, not {foreseen:?}, of {operation:?}"
                    );
                    model.follow(operation, result);
                }
            }
            same_state(&queues, model)?;
        }
        Step::List {
            queue,
            after,
            bounds,
        } => {
            let queue = name(*queue);
            let after = model.pick(&queue, *after);
            let mut messages = model.messages(&queue);
            messages.retain(|message| message.sequence > after);
            let more = bounds.cut(&mut messages, |message| message.message.len());
            let found = block_on(queues.list(ListQueue {
                queue,
                after,
                limit: bounds.limit,
                bytes_max: bounds.bytes_max,
            }));
            prop_assert_eq!(found.unwrap(), QueuePage { messages, more });
        }
        Step::Due {
            until,
            after,
            bounds,
        } => {
            let until = Timestamp::from_millis(*until);
            let after = after.map(|(expires, pick)| DuePosition {
                expires: Timestamp::from_millis(expires),
                sequence: model.pick(&name(0), pick),
            });
            let mut messages = model.due();
            messages.retain(|(_, message)| Some(position(message)) > after);
            let next = messages.first().map(|(_, message)| message.expires);
            prop_assert_eq!(block_on(queues.next_due(after)).unwrap(), next);
            messages.retain(|(_, message)| message.expires <= until);
            let more = bounds.cut(&mut messages, |(_, message)| message.message.len());
            let found = block_on(queues.due(ListDue {
                until,
                after,
                limit: bounds.limit,
                bytes_max: bounds.bytes_max,
            }));
            prop_assert_eq!(found.unwrap(), DuePage { messages, more });
        }
        Step::Outcomes {
            lane,
            after,
            bounds,
            queue,
        } => {
            let queue = queue.map(name);
            let mut outcomes = model.outcomes(*lane);
            outcomes.retain(|outcome| {
                let wanted = queue.as_ref().is_none_or(|queue| outcome.queue == *queue);
                wanted && outcome.number > *after
            });
            bounds.cut(&mut outcomes, |outcome| outcome.record.len());
            let found = block_on(queues.outcomes(ListOutcomes {
                lane: Lane(*lane),
                after: *after,
                limit: bounds.limit,
                bytes_max: bounds.bytes_max,
                queue,
            }));
            prop_assert_eq!(found.unwrap(), outcomes);
        }
        Step::Reopen => {
            drop(queues);
            subject.reopen();
            same_state(&subject.store().queues, model)?;
        }
    }
    Ok(())
}

/// Whether a store may answer so where the model foresees the other: it may leave numbers out, and
/// drop a queue in parts.
fn is_allowed(foreseen: &OperationResult, result: &OperationResult) -> bool {
    use OperationResult::{Dropped, Enqueued};
    match (foreseen, result) {
        (Enqueued { sequence: least }, Enqueued { sequence }) => sequence >= least,
        (Dropped { messages: all, .. }, Dropped { messages, more }) => {
            let some = *messages > 0 || *all == 0;
            some && messages <= all && *more == (messages < all)
        }
        _ => foreseen == result,
    }
}

fn same_state(queues: &Queues, model: &Model) -> Result<(), TestCaseError> {
    let names: Vec<_> = (0..NAMES.len()).map(name).collect();
    let depths = block_on(queues.depths(names.clone())).unwrap();
    for (queue, depth) in names.into_iter().zip(depths) {
        let messages = model.messages(&queue);
        prop_assert_eq!(depth, messages.len() as u64);
        let found = block_on(queues.list(ListQueue {
            queue,
            after: 0,
            limit: 1_000,
            bytes_max: usize::MAX,
        }));
        let expected = QueuePage {
            messages,
            more: false,
        };
        prop_assert_eq!(found.unwrap(), expected);
    }
    let messages = model.due();
    let next = messages.first().map(|(_, message)| message.expires);
    prop_assert_eq!(block_on(queues.next_due(None)).unwrap(), next);
    let found = block_on(queues.due(ListDue {
        until: Timestamp::from_millis(1_000),
        after: None,
        limit: 1_000,
        bytes_max: usize::MAX,
    }));
    let expected = DuePage {
        messages,
        more: false,
    };
    prop_assert_eq!(found.unwrap(), expected);
    for lane in 0..LANES {
        let outcomes = model.outcomes(lane);
        let bytes = outcomes.iter().map(|outcome| outcome.record.len() as u64);
        let figures = LaneFigures {
            last: model.last(Lane(lane)),
            count: outcomes.len() as u64,
            bytes: bytes.sum(),
        };
        prop_assert_eq!(queues.lane(Lane(lane)), figures);
        prop_assert_eq!(outcomes_of(queues, lane), outcomes);
    }
    Ok(())
}

impl Model {
    fn plan(&self, planned: &Planned) -> Operation {
        match planned {
            Planned::Enqueue {
                queue,
                message,
                expires,
                depth_max,
                once,
            } => Operation::Enqueue {
                queue: name(*queue),
                message: Bytes::copy_from_slice(message),
                expires: Timestamp::from_millis(*expires),
                depth_max: *depth_max,
                once: *once,
            },
            Planned::Settle {
                queue,
                message,
                outcomes,
            } => Operation::Settle {
                queue: name(*queue),
                sequence: self.pick(&name(*queue), *message),
                outcomes: outcomes
                    .iter()
                    .map(|(lane, record)| (Lane(*lane), Bytes::copy_from_slice(record)))
                    .collect(),
            },
            Planned::SetDeliveryCount {
                queue,
                message,
                count,
            } => Operation::SetDeliveryCount {
                queue: name(*queue),
                sequence: self.pick(&name(*queue), *message),
                count: *count,
            },
            Planned::Drop { queue } => Operation::Drop {
                queue: name(*queue),
            },
            Planned::Record {
                lane,
                queue,
                message,
                record,
            } => Operation::Record {
                lane: Lane(*lane),
                queue: name(*queue),
                sequence: self.pick(&name(*queue), *message),
                record: Bytes::copy_from_slice(record),
            },
            Planned::Forget { lane, before_last } => Operation::Forget {
                lane: Lane(*lane),
                // Sometimes beyond the last.
                through: (self.last(Lane(*lane)) + 2).saturating_sub(*before_last),
            },
            Planned::Remove { lane, before_last } => Operation::Remove {
                lane: Lane(*lane),
                number: (self.last(Lane(*lane)) + 1).saturating_sub(*before_last),
            },
        }
    }

    /// What a store answers that leaves no number out and drops a queue at once.
    fn foresee(&self, operation: &Operation) -> OperationResult {
        let done_if = |done: bool| match done {
            true => OperationResult::Done,
            false => OperationResult::Gone,
        };
        match operation {
            Operation::Enqueue {
                queue,
                depth_max,
                once,
                ..
            } => {
                let mark = self.queues.get(queue).and_then(|queue| queue.mark);
                if once.is_some_and(|once| mark.is_some_and(|mark| once <= mark)) {
                    OperationResult::DoneBefore
                } else if self.messages(queue).len() as u64 >= *depth_max {
                    OperationResult::QueueFull
                } else {
                    OperationResult::Enqueued {
                        sequence: self.sequence + 1,
                    }
                }
            }
            Operation::Settle {
                queue, sequence, ..
            }
            | Operation::SetDeliveryCount {
                queue, sequence, ..
            } => {
                let messages = self.messages(queue);
                done_if(messages.iter().any(|one| one.sequence == *sequence))
            }
            Operation::Drop { queue } => OperationResult::Dropped {
                messages: self.messages(queue).len() as u64,
                more: false,
            },
            Operation::Record { .. } | Operation::Forget { .. } => OperationResult::Done,
            Operation::Remove { lane, number } => {
                let outcomes = self.outcomes(lane.0);
                done_if(outcomes.iter().any(|one| one.number == *number))
            }
        }
    }

    /// Does what a store says that it did.
    fn follow(&mut self, operation: &Operation, result: &OperationResult) {
        match (operation, result) {
            (
                Operation::Enqueue {
                    queue,
                    message,
                    expires,
                    once,
                    ..
                },
                OperationResult::Enqueued { sequence },
            ) => {
                self.sequence = *sequence;
                let queue = self.queues.entry(queue.clone()).or_default();
                queue.mark = once.or(queue.mark);
                queue.messages.push(QueuedMessage {
                    sequence: *sequence,
                    expires: *expires,
                    delivery_count: 0,
                    message: message.clone(),
                });
            }
            (
                Operation::Settle {
                    queue,
                    sequence,
                    outcomes,
                },
                OperationResult::Done,
            ) => {
                let messages = &mut self.queues.get_mut(queue).unwrap().messages;
                messages.retain(|message| message.sequence != *sequence);
                for (lane, record) in outcomes {
                    self.record(*lane, queue, *sequence, record);
                }
            }
            (
                Operation::SetDeliveryCount {
                    queue,
                    sequence,
                    count,
                },
                OperationResult::Done,
            ) => {
                let messages = &mut self.queues.get_mut(queue).unwrap().messages;
                let message = messages.iter_mut().find(|one| one.sequence == *sequence);
                message.unwrap().delivery_count = *count;
            }
            (Operation::Drop { queue }, OperationResult::Dropped { messages, more }) => {
                if *more {
                    let dropped = usize::try_from(*messages).unwrap();
                    let queue = self.queues.get_mut(queue).unwrap();
                    queue.messages.drain(..dropped);
                } else {
                    self.queues.remove(queue);
                }
            }
            (
                Operation::Record {
                    lane,
                    queue,
                    sequence,
                    record,
                },
                OperationResult::Done,
            ) => self.record(*lane, queue, *sequence, record),
            (Operation::Forget { lane, through }, OperationResult::Done) => {
                if let Some(records) = self.lanes.get_mut(lane) {
                    records.kept.retain(|one| one.number > *through);
                }
            }
            (Operation::Remove { lane, number }, OperationResult::Done) => {
                let records = self.lanes.get_mut(lane).unwrap();
                records.kept.retain(|one| one.number != *number);
            }
            // Nothing was done.
            _ => {}
        }
    }

    fn record(&mut self, lane: Lane, queue: &QueueName, sequence: u64, record: &Bytes) {
        let records = self.lanes.entry(lane).or_default();
        records.last += 1;
        records.kept.push(Outcome {
            number: records.last,
            queue: queue.clone(),
            sequence,
            record: record.clone(),
        });
    }

    fn pick(&self, queue: &QueueName, pick: Pick) -> u64 {
        let messages = self.messages(queue);
        match pick {
            Pick::Number(number) => number,
            Pick::Waiting(_) if messages.is_empty() => 0,
            Pick::Waiting(index) => index.get(&messages).sequence,
        }
    }

    fn messages(&self, queue: &QueueName) -> Vec<QueuedMessage> {
        let queue = self.queues.get(queue);
        queue
            .map(|queue| queue.messages.clone())
            .unwrap_or_default()
    }

    fn due(&self) -> Vec<(QueueName, QueuedMessage)> {
        let mut due = Vec::new();
        for (name, queue) in &self.queues {
            let messages = queue.messages.iter();
            due.extend(messages.map(|message| (name.clone(), message.clone())));
        }
        due.sort_by_key(|(_, message)| position(message));
        due
    }

    fn outcomes(&self, lane: u8) -> Vec<Outcome> {
        let records = self.lanes.get(&Lane(lane));
        records
            .map(|records| records.kept.clone())
            .unwrap_or_default()
    }

    fn last(&self, lane: Lane) -> OutcomeNumber {
        self.lanes.get(&lane).map_or(0, |records| records.last)
    }
}

impl Bounds {
    /// Leaves what fits into an answer, and says whether there was more.
    fn cut<T>(self, items: &mut Vec<T>, length: impl Fn(&T) -> usize) -> bool {
        let total = items.len();
        let mut bytes = 0;
        let mut kept = 0;
        while kept < total.min(self.limit) && (kept == 0 || bytes < self.bytes_max) {
            bytes += length(&items[kept]);
            kept += 1;
        }
        items.truncate(kept);
        kept < total
    }
}

fn name(queue: usize) -> QueueName {
    QueueName(Bytes::from_static(NAMES[queue]))
}

fn position(message: &QueuedMessage) -> DuePosition {
    DuePosition {
        expires: message.expires,
        sequence: message.sequence,
    }
}
