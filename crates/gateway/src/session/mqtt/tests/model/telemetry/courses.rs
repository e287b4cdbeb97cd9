//! Connections that break as chance has it.

use proptest::prelude::*;

use super::world::World;
use super::*;

fn end() -> impl Strategy<Value = Break> {
    prop::sample::select(&[
        Break::Closed,
        Break::HalfDisconnect,
        Break::Silent,
        Break::Violation,
        Break::TakenOver,
        Break::Disabled,
        Break::Drained,
        Break::Crashed,
        Break::LogLost,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let qos = || prop::sample::select(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]);
    let filter = || 0..FILTERS.len();
    let id = prop::sample::select(&[Id::Fresh, Id::Fresh, Id::Reused]);
    let meanwhile = prop::sample::select(&[
        Meanwhile::Nothing,
        Meanwhile::Closed,
        Meanwhile::TakenOver,
        Meanwhile::Crashed,
        Meanwhile::Lost,
    ]);
    prop_oneof![
        8 => (1..4u8, any::<bool>(), id, any::<bool>()).prop_map(|(count, once, id, seen)| {
            let qos = if once { Qos::AtLeastOnce } else { Qos::AtMostOnce };
            Step::Publish { count, qos, id, seen }
        }),
        5 => any::<bool>().prop_map(|seen| Step::Resend { seen }),
        3 => (0..64usize, end()).prop_map(|(byte, then)| Step::Cut { byte, then }),
        2 => Just(Step::Twin),
        9 => any::<[bool; 2]>().prop_map(|[clean, will]| Step::Connect { clean, will }),
        1 => Just(Step::DisconnectAndTakeOver),
        3 => (filter(), qos()).prop_map(|(filter, qos)| Step::Subscribe { filter, qos }),
        2 => filter().prop_map(|filter| Step::Unsubscribe { filter }),
        2 => (filter(), meanwhile).prop_map(|(filter, meanwhile)| {
            Step::SubscribeDuring { filter, meanwhile }
        }),
        5 => Just(Step::Commit),
        2 => end().prop_map(Step::CommitUnheard),
        2 => Just(Step::Disconnect),
        4 => end().prop_map(Step::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_course_of_connections_stores_what_was_sent_and_the_wills_that_are_due(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
        });
    }
}
