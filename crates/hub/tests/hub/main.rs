//! The rules of the hub, on the memory engine and with time that moves only when told to.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

mod access;
mod bench;
mod c2d;
mod certificates;
mod clock;
mod commands;
mod damage;
mod dead_letters;
mod events;
mod feedback;
mod history;
mod ingest;
mod memory;
mod modules;
mod presence;
mod probe;
mod receiving;
mod registry;
mod sending;
mod settings;
mod subscriptions;
mod throttles;
mod traces;
mod watched;
