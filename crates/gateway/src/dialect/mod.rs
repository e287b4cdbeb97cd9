//! Pure translation between what stands on the wire and the words of the domain.
//!
//! Nothing here waits, locks or knows a socket; every function is total over hostile input.

pub(crate) mod amqp;
pub(crate) mod http;
pub(crate) mod mqtt;
