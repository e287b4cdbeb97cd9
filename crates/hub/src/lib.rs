//! What an IoT hub does: every rule of the product, as plain calls.
//!
//! [`Hub`] joins the parts: [`identity`] knows the devices, [`auth`] and [`policies`] who is let
//! in, [`presence`] who is connected, [`subscriptions`] what MQTT devices want to hear, [`ingest`]
//! takes messages from devices, [`events`] lets services read them, [`c2d`] brings messages to
//! devices, [`settings`] is what operators change, [`throttles`] limit a hub that plays a tier. A hub in test mode has a [`probe`].
//!
//! The crate knows no sockets, frames, topics, status codes or configuration files. It keeps its
//! state in the store it is opened with; time and chance come from outside as well ([`clock`]).

pub mod auth;
pub mod authorities;
pub mod c2d;
pub mod clock;
mod collections;
mod contents;
pub mod events;
pub mod faults;
mod hub;
pub mod identity;
pub mod ingest;
mod names;
pub mod policies;
pub mod presence;
pub mod probe;
pub mod secrets;
pub mod settings;
pub mod subscriptions;
pub mod throttles;

pub use contents::holds_data;
pub use hub::{Hub, HubConfig, HubParts, OpenError};
