//! The generated wire types of `proto/chat.proto`; the comments there are their documentation.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

use crate::domain::EventKind;

tonic::include_proto!("itu.chitchat");

impl From<&EventKind> for EventType {
    fn from(kind: &EventKind) -> Self {
        match kind {
            EventKind::Join => Self::Join,
            EventKind::Message { .. } => Self::Message,
            EventKind::Leave => Self::Leave,
        }
    }
}

/// The encoded descriptor set of the contract and everything it imports, for server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chat_descriptor.bin"));
