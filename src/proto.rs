//! The types that prost and tonic generate from `proto/chat.proto`, where they are documented.
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

/// The encoded file descriptor set of `proto/chat.proto` and its imports, for server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chat_descriptor.bin"));
