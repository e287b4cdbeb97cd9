//! scratch
#![allow(dead_code, unused_imports)]
mod config;
mod files;
mod logging;
mod trust;
mod assembly { pub(crate) mod listeners; pub(crate) mod endpoints; }
mod cli { pub(crate) mod output; }
fn main() {}
