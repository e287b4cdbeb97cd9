//! Seeds with a story, and the promise that a seed has one story.

use fieldpost_sim::{Scenario, run};

/// Runs a seed and wants every promise kept.
fn check(scenario: &str, seed: u64) {
    let scenario = Scenario::named(scenario).expect("the scenario is there");
    let outcome = run(&scenario, seed, None);
    assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}");
    // Nothing is shown by a run in which nothing happens.
    assert_eq!(
        outcome.figures.acknowledged,
        scenario.devices * scenario.messages
    );
    assert!(outcome.figures.read >= outcome.figures.acknowledged);
    assert!(outcome.figures.answered > 0);
}

/// Every choice comes from the seed: two runs in one process and beside other runs write the same
/// journal to the byte, and another seed writes another one.
#[test]
fn a_seed_has_one_story() {
    for scenario in Scenario::all().into_iter().filter(|s| s.devices < 100) {
        let once = std::thread::scope(|scope| {
            let beside = scope.spawn(|| run(&scenario, 8, None));
            let once = run(&scenario, 7, None);
            let beside = beside.join().expect("it does not panic");
            assert_ne!(once.hash, beside.hash, "{}", scenario.name);
            once
        });
        assert_eq!(once, run(&scenario, 7, None), "{}", scenario.name);
    }
}

#[test]
fn every_scenario_keeps_its_promises() {
    for scenario in Scenario::all() {
        check(scenario.name, 1);
    }
}
