//! Between AMQP frames and the words of the domain, both ways.

pub(crate) mod address;
pub(crate) mod cbs;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod management;
pub(crate) mod receiver;
pub(crate) mod selector;
