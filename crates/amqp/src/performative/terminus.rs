//! Source and target: the two ends that a link connects.

use super::described_list;
use super::field::{Field, Fields, composite, optional};
use crate::error::DecodeError;
use crate::value::{Encoder, Map, Symbol, Value, ValueRef};

composite! {
    /// Where messages come from.
    Source = 0x28 {
        /// Address of the node.
        address: optional String,
        /// What of the terminus outlives a detach.
        durable: optional u32,
        /// When the terminus is deleted.
        expiry_policy: optional Symbol,
        /// Seconds after which a terminus without a link is deleted.
        timeout: optional u32,
        /// The other end shall make a node and tell its address.
        dynamic: optional bool,
        /// Facts about the node to make.
        dynamic_node_properties: optional Map,
        /// Whether messages are moved or copied.
        distribution_mode: optional Symbol,
        /// Which messages are wanted: symbol to described value.
        filter: optional Map,
        /// Outcome of deliveries that have none.
        default_outcome: optional Value,
        /// Outcomes that may be used.
        outcomes: many Symbol,
        /// Extensions.
        capabilities: many Symbol,
    }
}

/// Where messages go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// Address of the node.
    pub address: Option<String>,
    /// What of the terminus outlives a detach.
    pub durable: Option<u32>,
    /// When the terminus is deleted.
    pub expiry_policy: Option<Symbol>,
    /// Seconds after which a terminus without a link is deleted.
    pub timeout: Option<u32>,
    /// The other end shall make a node and tell its address.
    pub dynamic: Option<bool>,
    /// Facts about the node to make.
    pub dynamic_node_properties: Option<Map>,
    /// Extensions.
    pub capabilities: Vec<Symbol>,
    /// The target is a transaction coordinator, which has no address. The engine refuses such
    /// links by itself: there are no transactions.
    pub coordinator: bool,
}

impl Target {
    /// Descriptor of this type.
    pub const CODE: u64 = 0x29;
    const COORDINATOR: u64 = 0x30;

    /// A target with only an address.
    pub fn to(address: impl Into<String>) -> Self {
        Self {
            address: Some(address.into()),
            ..Self::default()
        }
    }
}

impl Source {
    /// A source with only an address.
    pub fn from_address(address: impl Into<String>) -> Self {
        Self {
            address: Some(address.into()),
            ..Self::default()
        }
    }
}

impl Field for Source {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match described_list(value)? {
            (Self::CODE, list) => Self::decode(list),
            (code, _) => Err(DecodeError::UnknownDescriptor(code)),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        self.encode(e);
    }
}

impl Field for Target {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        let (code, list) = described_list(value)?;
        let mut fields = Fields::new(list);
        match code {
            Self::CODE => Ok(Self {
                address: fields.optional()?,
                durable: fields.optional()?,
                expiry_policy: fields.optional()?,
                timeout: fields.optional()?,
                dynamic: fields.optional()?,
                dynamic_node_properties: fields.optional()?,
                capabilities: fields.many()?,
                coordinator: false,
            }),
            Self::COORDINATOR => Ok(Self {
                capabilities: fields.many()?,
                coordinator: true,
                ..Self::default()
            }),
            other => Err(DecodeError::UnknownDescriptor(other)),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        let capabilities = |e: &mut Encoder<'_>| {
            if self.capabilities.is_empty() {
                e.null();
            } else {
                e.symbols(&self.capabilities);
            }
        };
        if self.coordinator {
            e.described(Self::COORDINATOR, |e| e.list(capabilities));
            return;
        }
        e.described(Self::CODE, |e| {
            e.list(|e| {
                optional(e, &self.address);
                optional(e, &self.durable);
                optional(e, &self.expiry_policy);
                optional(e, &self.timeout);
                optional(e, &self.dynamic);
                optional(e, &self.dynamic_node_properties);
                capabilities(e);
            });
        });
    }
}
