//! `fieldpost`: a self-hosted hub for devices that speak to Azure IoT Hub, in one binary.
//!
//! [`config`] says what is wanted, [`assembly`] builds the store, the hub and the gateway from it
//! and takes them down again, [`admin`] is what tools talk to, [`trust`] the hub's certificates,
//! and [`cli`] the command line in front of it all. What a hub does, and how protocols work, is not
//! known here.

mod admin;
mod assembly;
mod cli;
mod clock;
mod config;
mod files;
mod keyfile;
mod logging;
mod metrics;
mod trust;

/// Messages come and go by the hundred thousand a second, each with a handful of allocations that
/// are freed on another thread: the case that the system's allocator is slowest at (ADR 6).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
