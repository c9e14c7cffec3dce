//! HTTP/2 frame headers.

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// On HEADERS and DATA: the last frame of the stream.
pub(super) const END_STREAM: u8 = 1;
/// On SETTINGS and PING: an acknowledgement.
pub(super) const ACK: u8 = 1;
/// On HEADERS and CONTINUATION: the header block is complete.
pub(super) const END_HEADERS: u8 = 4;
/// On HEADERS and DATA: the payload is padded.
pub(super) const PADDED: u8 = 8;
/// On HEADERS: five bytes of priority come first.
pub(super) const PRIORITY: u8 = 0x20;

/// The connection preface of a client.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame header in bytes.
pub(super) const HEADER_LEN: usize = 9;

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    #[inline]
    pub(super) fn read(&[a, b, c, kind, flags, e, f, g, h]: &[u8; HEADER_LEN]) -> Self {
        Self {
            length: (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes([e, f, g, h]) & 0x7FFF_FFFF,
        }
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame. The payload must be shorter than 16 MiB.
pub(super) fn put(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let [_, a, b, c] = length.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Removes the padding of a DATA or HEADERS payload; `None` if the padding is longer than the payload.
pub(super) fn unpad(frame: Frame, payload: &[u8]) -> Option<&[u8]> {
    if !frame.has(PADDED) {
        return Some(payload);
    }
    let (&padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(padding))?)
}

/// The name of an error code.
pub(super) fn error_name(code: u32) -> String {
    let names = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| names.get(code));
    name.map_or_else(|| format!("error {code:#x}"), |&name| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let mut out = Vec::new();
        put(DATA, END_STREAM, 7, &[9; 70_000], &mut out);
        let frame = Frame::read(out.first_chunk().unwrap());
        assert_eq!(
            frame,
            Frame {
                length: 70_000,
                kind: DATA,
                flags: END_STREAM,
                stream: 7
            }
        );
        assert_eq!(out.len(), HEADER_LEN + 70_000);
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        assert_eq!(Frame::read(&[0, 0, 0, 6, 0, 0x80, 0, 0, 1]).stream, 1);
    }

    #[test]
    fn padding_is_removed_or_rejected() {
        let padded = Frame {
            length: 0,
            kind: DATA,
            flags: PADDED,
            stream: 1,
        };
        assert_eq!(unpad(padded, &[2, b'a', b'b', 0, 0]), Some(&b"ab"[..]));
        assert_eq!(unpad(padded, &[3, 0]), None);
        assert_eq!(unpad(padded, &[]), None);
        assert_eq!(unpad(Frame { flags: 0, ..padded }, &[3, 0]), Some(&[3, 0][..]));
    }

    #[test]
    fn error_codes_have_names() {
        assert_eq!(error_name(11), "ENHANCE_YOUR_CALM");
        assert_eq!(error_name(99), "error 0x63");
    }
}
