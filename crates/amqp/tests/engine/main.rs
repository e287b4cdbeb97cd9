//! Conversations between two engines, and of one engine with hostile peers.

mod cuts;
mod deliveries;
mod handshake;
mod hostile;
mod links;
mod small_frames;
mod support;
