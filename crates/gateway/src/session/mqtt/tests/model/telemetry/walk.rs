//! Every short history.

use super::world::World;
use super::*;

const BREAKS: [Break; 9] = [
    Break::Closed,
    Break::HalfDisconnect,
    Break::Silent,
    Break::Violation,
    Break::TakenOver,
    Break::Disabled,
    Break::Drained,
    Break::Crashed,
    Break::LogLost,
];

const fn messages(id: Id, seen: bool) -> Step {
    Step::Publish {
        count: 2,
        qos: Qos::AtLeastOnce,
        id,
        seen,
    }
}

/// How far a message may have come, each way from none to acknowledged, as the steps before a break.
const BEFORE: [&[Step]; 8] = [
    &[],
    &[messages(Id::Fresh, false)],
    &[messages(Id::Fresh, true)],
    &[messages(Id::Fresh, true), Step::Commit],
    &[messages(Id::Fresh, true), Step::Twin],
    &[messages(Id::Fresh, true), messages(Id::Reused, false)],
    &[
        messages(Id::Fresh, true),
        Step::Commit,
        messages(Id::Fresh, false),
    ],
    &[messages(Id::Fresh, true), Step::Resend { seen: false }],
];

/// What a device does when it is back.
const AFTER: [&[Step]; 4] = [
    &[],
    &[Step::Commit, Step::Resend { seen: true }],
    &[Step::Resend { seen: false }, messages(Id::Fresh, true)],
    &[messages(Id::Reused, true), Step::Resend { seen: true }],
];

#[tokio::test]
async fn wherever_a_connection_breaks_what_was_sent_is_stored_in_order() {
    for before in BEFORE {
        let ends = BREAKS.iter().flat_map(|&then| {
            let mut ends = vec![Step::End(then), Step::CommitUnheard(then)];
            ends.push(Step::Cut { byte: 1, then });
            ends.push(Step::Cut { byte: 40, then });
            ends
        });
        let ends = ends.chain([Step::Disconnect, Step::DisconnectAndTakeOver]);
        let ends: Vec<Step> = ends.collect();
        for clean in [false, true] {
            for end in &ends {
                for after in AFTER {
                    let mut history = vec![Step::Connect { clean, will: true }];
                    history.extend(before);
                    history.extend([*end, Step::Connect { clean, will: false }]);
                    history.extend(after);
                    go(&history).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_subscription_outlives_whatever_comes_after_its_acknowledgement() {
    let during = |meanwhile| Step::SubscribeDuring {
        filter: TWIN,
        meanwhile,
    };
    let qos = Qos::AtLeastOnce;
    let subscribe = Step::Subscribe { filter: TWIN, qos };
    let changes = [
        subscribe,
        Step::Unsubscribe { filter: TWIN },
        during(Meanwhile::Nothing),
        during(Meanwhile::Closed),
        during(Meanwhile::TakenOver),
        during(Meanwhile::Crashed),
        during(Meanwhile::Lost),
    ];
    for subscribed in [false, true] {
        for change in changes {
            for then in BREAKS {
                for [first, last] in [[false, false], [false, true], [true, false]] {
                    let mut history = vec![Step::Connect {
                        clean: first,
                        will: true,
                    }];
                    history.extend(subscribed.then_some(subscribe));
                    history.extend([messages(Id::Fresh, true), change, Step::End(then)]);
                    history.push(Step::Connect {
                        clean: last,
                        will: true,
                    });
                    // Answered or not.
                    history.push(Step::Twin);
                    go(&history).await;
                }
            }
        }
    }
}

/// A connection that is taken over while it waits for the store has read nothing that a failure of the
/// log could lose.
#[tokio::test]
async fn a_log_that_fails_with_nothing_to_write_loses_nothing() {
    let meanwhile = Meanwhile::TakenOver;
    go(&[
        Step::Connect {
            clean: false,
            will: false,
        },
        Step::SubscribeDuring {
            filter: 0,
            meanwhile,
        },
        Step::End(Break::LogLost),
    ])
    .await;
}

async fn go(history: &[Step]) {
    let walked = async {
        let mut world = World::new().await;
        for step in history {
            world.take(*step).await;
        }
        world.finish().await;
    };
    let walked = std::panic::AssertUnwindSafe(walked);
    if let Err(failed) = futures_util::FutureExt::catch_unwind(walked).await {
        eprintln!("the history was {history:?}");
        std::panic::resume_unwind(failed);
    }
}
