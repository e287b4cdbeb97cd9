//! One task per connection that drives a protocol engine and calls the hub.

pub(crate) mod amqp;
pub(crate) mod mqtt;
