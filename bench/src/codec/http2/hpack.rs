//! The subset of HPACK that the generator needs: it encodes requests as literals, and decodes the headers that say why
//! a stream ended. The generator announces a dynamic table of size 0, so there is no state.

/// Appends a header as a never-indexed literal with a literal name.
pub(super) fn put_header(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(0x10);
    for text in [name, value] {
        put_length(text.len(), out);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Appends a string length with a 7-bit prefix, without Huffman coding.
fn put_length(length: usize, out: &mut Vec<u8>) {
    let Some(mut rest) = length.checked_sub(127) else {
        out.push(u8::try_from(length).unwrap_or(0));
        return;
    };
    out.push(127);
    while rest >= 128 {
        let [low, ..] = rest.to_le_bytes();
        out.push(low | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or(0));
}

/// The status of a stream, from its headers and trailers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct StreamStatus {
    pub(super) http_status: Option<String>,
    pub(super) grpc_status: Option<String>,
    pub(super) grpc_message: Option<String>,
}

impl StreamStatus {
    /// Decodes a header block up to the first error, which suffices for diagnosis.
    pub(super) fn read(mut block: &[u8]) -> Self {
        let mut status = Self::default();
        while let Some(header) = take_header(&mut block) {
            match header {
                (Some(name), value) if name == "grpc-status" => status.grpc_status = Some(value),
                (Some(name), value) if name == "grpc-message" => status.grpc_message = Some(value),
                (Some(name), value) if name == ":status" => status.http_status = Some(value),
                _ => {}
            }
        }
        status
    }

    /// Describes the error; `None` if the stream ended with status OK.
    pub(super) fn error(&self) -> Option<String> {
        match (self.grpc_status.as_deref(), self.http_status.as_deref()) {
            (Some("0"), _) => None,
            (Some(code), _) => {
                let text = self.grpc_message.as_deref().unwrap_or("no message");
                Some(format!("grpc-status {code}: {}", percent_decoded(text)))
            }
            (None, Some(status)) if status != "200" => Some(format!("HTTP status {status}")),
            (None, _) => Some("ended without a grpc-status".to_owned()),
        }
    }
}

/// Decodes the percent-encoding of `grpc-message`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() {
            after.get(2..).unwrap_or_default()
        } else {
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Splits off the next header, with its name if it is known. `None` at the end or if the block is malformed.
fn take_header(block: &mut &[u8]) -> Option<(Option<String>, String)> {
    loop {
        let first = *block.first()?;
        if first & 0x80 != 0 {
            let index = take_integer(block, 7)?;
            let status = ["200", "204", "206", "304", "400", "404", "500"];
            let value = index.checked_sub(8).and_then(|at| status.get(at));
            return Some(match value {
                Some(&value) => (Some(":status".to_owned()), value.to_owned()),
                None => (None, String::new()),
            });
        }
        if first & 0xE0 == 0x20 {
            take_integer(block, 5)?;
            continue;
        }
        let index = take_integer(block, if first & 0x40 != 0 { 6 } else { 4 })?;
        let name = match index {
            0 => Some(take_string(block)?),
            8..=14 => Some(":status".to_owned()),
            _ => None,
        };
        return Some((name, take_string(block)?));
    }
}

fn take_integer(block: &mut &[u8], prefix: u32) -> Option<usize> {
    let (&first, mut rest) = block.split_first()?;
    let mask = u8::MAX >> (8 - prefix);
    let mut value = usize::from(first & mask);
    if first & mask == mask {
        for shift in (0..28).step_by(7) {
            let (&byte, after) = rest.split_first()?;
            rest = after;
            value += usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                *block = rest;
                return Some(value);
            }
        }
        return None;
    }
    *block = rest;
    Some(value)
}

fn take_string(block: &mut &[u8]) -> Option<String> {
    let huffman = block.first()? & 0x80 != 0;
    let length = take_integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(if huffman {
        huffman_decoded(bytes)
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    })
}

/// The symbols of each code length. HPACK's Huffman code is canonical, so they determine the codes. Only codes of up to
/// 15 bits are included, which cover printable ASCII except the backslash.
const SYMBOLS: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

/// Decodes up to the first unknown symbol, which becomes an ellipsis.
fn huffman_decoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit) & 1));
    loop {
        let (mut code, mut length, mut first) = (0, 0, 0);
        let symbol = SYMBOLS.iter().find_map(|&(bits_wanted, symbols)| {
            while length < bits_wanted {
                code = (code << 1) | bits.next()?;
                first <<= 1;
                length += 1;
            }
            let count = u32::try_from(symbols.len()).ok()?;
            let at = code.checked_sub(first);
            first += count;
            symbols.get(usize::try_from(at?).ok()?)
        });
        match symbol {
            Some(&symbol) => text.push(char::from(symbol)),
            None if length == 15 => {
                text.push('…');
                return text;
            }
            // Padding.
            None => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_decoded_as_it_was_encoded() {
        let long = "x".repeat(300);
        let mut block = Vec::new();
        put_header("grpc-message", &long, &mut block);
        put_header("grpc-status", "8", &mut block);
        let status = StreamStatus::read(&block);
        assert_eq!(status.grpc_message.as_deref(), Some(&*long));
        assert_eq!(status.error(), Some(format!("grpc-status 8: {long}")));
    }

    #[test]
    fn the_huffman_examples_of_the_rfc_are_decoded() {
        // RFC 7541, C.4.1 and C.6.1.
        let www = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(huffman_decoded(&www), "www.example.com");
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66,
            0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(huffman_decoded(&date), "Mon, 21 Oct 2013 20:13:21 GMT");
    }

    #[test]
    fn a_block_with_indexed_fields_and_a_size_update_is_decoded() {
        // Table size 0, an indexed :status 200, a literal with the indexed name 31, a literal grpc-status.
        let mut block = vec![0x20, 0x88, 0x0f, 0x10, 1, b'x'];
        put_header("grpc-status", "0", &mut block);
        let status = StreamStatus::read(&block);
        assert_eq!(status.http_status.as_deref(), Some("200"));
        assert_eq!(status.error(), None);
    }

    #[test]
    fn other_errors_are_described() {
        assert_eq!(
            StreamStatus::read(&[0x8d]).error(),
            Some("HTTP status 404".into())
        );
        assert_eq!(
            StreamStatus::read(&[]).error(),
            Some("ended without a grpc-status".into())
        );
        assert_eq!(percent_decoded("a%20b%C3%A6%zz%4"), "a bæ%zz%4");
    }
}
