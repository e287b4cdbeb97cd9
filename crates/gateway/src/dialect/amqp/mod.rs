//! Between AMQP frames and the words of the domain, both ways.

pub(crate) mod address;
pub(crate) mod cbs;
pub(crate) mod command;
pub(crate) mod device_bound;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod feedback;
pub(crate) mod management;
pub(crate) mod receiver;
pub(crate) mod redirect;
pub(crate) mod refusal;
pub(crate) mod selector;
pub(crate) mod telemetry;
pub(crate) mod values;
