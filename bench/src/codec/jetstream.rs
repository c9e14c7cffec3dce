//! JetStream, over the text protocol of nats-server. A room is a subject of the stream, and each client has a consumer of its own:
//! an *ordered* push consumer as the client libraries make it, which is not replicated, acknowledges nothing, has flow control and
//! starts with what is stored after it. A publisher waits for acknowledgements like a client library that publishes asynchronously.

use super::nats::{MAX_MESSAGE, put, take_content};
use super::{ClientSlot, Codec, ConnectionError, Event, EventSink, PublishHeader, decimal, take_line};

/// The stream in which the messages are stored.
const STREAM: &str = "BENCH";
/// The first token of its subjects.
const SUBJECT: &str = "bench";
/// How many messages a publisher sends without an acknowledgement: the limit of the client library of NATS for Go.
const MAX_UNACKNOWLEDGED: usize = 4_000;
/// How often a consumer with nothing to deliver says so, in nanoseconds.
const IDLE_HEARTBEAT: u64 = 5_000_000_000;
/// How long a consumer stays without its client, in nanoseconds.
const INACTIVE_THRESHOLD: u64 = 300_000_000_000;

/// A slot has two subscriptions: one for what its consumer delivers, and one for answers. Their ids are `2 * slot + 1` and
/// `2 * slot + 2`.
const SUBSCRIPTIONS: usize = 2;

/// One connection to nats-server.
#[derive(Debug)]
pub(crate) struct JetStream {
    slots: Vec<ClientSlot>,
    joined: Vec<bool>,
    unacknowledged: usize,
    publish_header: PublishHeader,
}

/// A message of NATS.
#[derive(Debug, Clone, Copy)]
struct Delivery<'a> {
    subscription: usize,
    reply: Option<&'a [u8]>,
    headers: &'a [u8],
    payload: &'a [u8],
}

impl JetStream {
    pub(crate) fn new(slots: Vec<ClientSlot>) -> Self {
        Self {
            joined: vec![false; slots.len()],
            slots,
            unacknowledged: 0,
            publish_header: PublishHeader::default(),
        }
    }

    fn control(line: &[u8], out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        if line == b"PING" {
            out.extend_from_slice(b"PONG\r\n");
        } else if !line.starts_with(b"INFO ") && line != b"PONG" && line != b"+OK" {
            return Err(ConnectionError(format!(
                "the server replied {}",
                String::from_utf8_lossy(line).escape_debug()
            )));
        }
        Ok(())
    }

    fn on_delivery(
        &mut self,
        delivery: Delivery<'_>,
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        let Some(index) = delivery.subscription.checked_sub(1) else {
            return Ok(());
        };
        let slot = index / SUBSCRIPTIONS;
        if index.is_multiple_of(SUBSCRIPTIONS) {
            if delivery.headers.is_empty() {
                sink.event(slot, &Event::plain(delivery.payload));
            } else if let Some(reply) = delivery.reply {
                // A request of flow control: everything before it has arrived.
                publish_empty(reply, out);
            } else if let Some(reply) = stalled_consumer(delivery.headers) {
                publish_empty(reply, out);
            }
            return Ok(());
        }
        let failed = |why: &str| {
            let answer = String::from_utf8_lossy(delivery.payload);
            ConnectionError(format!("{why}: {}", answer.escape_debug()))
        };
        if !delivery.headers.is_empty() {
            return Err(failed("no JetStream answers, or it has no stream BENCH"));
        }
        if is_error(delivery.payload) {
            return Err(failed("JetStream answers"));
        }
        match self.joined.get_mut(slot) {
            Some(joined) if !*joined => {
                *joined = true;
                sink.joined(slot);
            }
            _ => self.unacknowledged = self.unacknowledged.saturating_sub(1),
        }
        Ok(())
    }

    /// Takes a message whose line is `fields`, without its verb, from what comes after that line. `Ok(None)` while it is incomplete.
    fn take_delivery<'a>(
        has_headers: bool,
        fields: &'a [u8],
        after: &'a [u8],
    ) -> Result<Option<(Delivery<'a>, &'a [u8])>, ConnectionError> {
        let malformed = || {
            let line = String::from_utf8_lossy(fields);
            ConnectionError(format!("malformed message: {}", line.escape_debug()))
        };
        let mut parts = fields.rsplit(|&byte| byte == b' ');
        let mut length = || {
            parts
                .next()
                .and_then(decimal)
                .filter(|&length| length <= MAX_MESSAGE)
        };
        let total = length().ok_or_else(malformed)?;
        let headers = if has_headers {
            length().ok_or_else(malformed)?
        } else {
            0
        };
        let mut parts = parts.collect::<Vec<_>>().into_iter().rev();
        let subscription = parts.nth(1).and_then(decimal).ok_or_else(malformed)?;
        let reply = parts.next();
        let Some((content, after)) = take_content(after, total)? else {
            return Ok(None);
        };
        let (headers, payload) = content.split_at_checked(headers).ok_or_else(malformed)?;
        let delivery = Delivery {
            subscription,
            reply,
            headers,
            payload,
        };
        Ok(Some((delivery, after)))
    }
}

impl Codec for JetStream {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"protocol\":1,\"headers\":true,\"no_responders\":true}\r\n",
        );
        for (slot, ClientSlot { name, room }) in self.slots.iter().enumerate() {
            put(
                out,
                format_args!("SUB _INBOX.{name}.deliver {}\r\n", slot * SUBSCRIPTIONS + 1),
            );
            put(
                out,
                format_args!("SUB _INBOX.{name}.answer {}\r\n", slot * SUBSCRIPTIONS + 2),
            );
            let request = format!(
                "{{\"stream_name\":\"{STREAM}\",\"config\":{{\"deliver_subject\":\"_INBOX.{name}.deliver\",\
                 \"filter_subject\":\"{SUBJECT}.{room}\",\"deliver_policy\":\"new\",\"ack_policy\":\"none\",\"max_deliver\":1,\
                 \"flow_control\":true,\"idle_heartbeat\":{IDLE_HEARTBEAT},\"inactive_threshold\":{INACTIVE_THRESHOLD},\
                 \"mem_storage\":true,\"num_replicas\":1}}}}"
            );
            put(
                out,
                format_args!(
                    "PUB $JS.API.CONSUMER.CREATE.{STREAM} _INBOX.{name}.answer {}\r\n{request}\r\n",
                    request.len()
                ),
            );
        }
    }

    fn receive(
        &mut self,
        input: &[u8],
        sink: &mut impl EventSink,
        out: &mut Vec<u8>,
    ) -> Result<usize, ConnectionError> {
        let mut rest = input;
        while let Some((line, length)) = take_line(rest) {
            let Some(after) = rest.get(length..) else { break };
            let (has_headers, fields) = if let Some(fields) = line.strip_prefix(b"MSG ") {
                (false, fields)
            } else if let Some(fields) = line.strip_prefix(b"HMSG ") {
                (true, fields)
            } else {
                Self::control(line, out)?;
                rest = after;
                continue;
            };
            let Some((delivery, after)) = Self::take_delivery(has_headers, fields, after)? else {
                break;
            };
            self.on_delivery(delivery, sink, out)?;
            rest = after;
        }
        if rest.len() > MAX_MESSAGE * 2 {
            return Err(ConnectionError("a line that is too long".to_owned()));
        }
        Ok(input.len() - rest.len())
    }

    fn publish(&mut self, _timestamp: i64, text: &[u8], out: &mut Vec<u8>) -> bool {
        if self.unacknowledged >= MAX_UNACKNOWLEDGED {
            return false;
        }
        self.unacknowledged += 1;
        let slot = self.slots.first();
        let (name, room) = slot.map_or(("", ""), |slot| (&slot.name, &slot.room));
        let header = self.publish_header.of(text.len(), |header| {
            put(
                header,
                format_args!("PUB {SUBJECT}.{room} _INBOX.{name}.answer {}\r\n", text.len()),
            );
        });
        out.extend_from_slice(header);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
        true
    }
}

fn publish_empty(subject: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject);
    out.extend_from_slice(b" 0\r\n\r\n");
}

/// The subject that a heartbeat names if its consumer waits for an answer to a request of flow control that was lost.
fn stalled_consumer(headers: &[u8]) -> Option<&[u8]> {
    let name: &[u8] = b"Nats-Consumer-Stalled: ";
    headers
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .map(<[u8]>::trim_ascii)
}

fn is_error(answer: &[u8]) -> bool {
    let error: &[u8] = b"\"error\":{";
    answer.windows(error.len()).any(|window| window == error)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{feed, slots};
    use super::*;

    const CREATED: &[u8] =
        b"INFO {}\r\nMSG _INBOX.a.answer 2 19\r\n{\"type\":\"created\"} \r\nMSG _INBOX.b.answer 4 2\r\n{}\r\n";

    #[test]
    fn a_client_has_joined_when_its_consumer_exists_and_messages_are_decoded_at_any_read_boundary() {
        let mut bytes = CREATED.to_vec();
        bytes.extend_from_slice(b"MSG bench.room 3 $JS.ACK.BENCH.x.1.9.3.7.0 3\r\none\r\n");
        bytes.extend_from_slice(b"PING\r\nMSG bench.room 1 $JS.ACK.BENCH.y.1.9.3.7.0 5\r\nt\r\nwo\r\n");
        for size in 1..=bytes.len() {
            let (recorder, out) = feed(&mut JetStream::new(slots(&["a", "b"])), &bytes, size).unwrap();
            assert_eq!(recorder.joined, [0, 1]);
            assert_eq!(recorder.texts, [(1, "one".into()), (0, "t\r\nwo".into())]);
            assert_eq!(out, b"PONG\r\n");
        }
    }

    #[test]
    fn requests_of_flow_control_are_answered_and_are_no_messages() {
        let mut bytes = CREATED.to_vec();
        bytes.extend_from_slice(
            b"HMSG _INBOX.a.deliver 1 $JS.FC.BENCH.x.1 36 36\r\nNATS/1.0 100 FlowControl Request\r\n\r\n\r\n",
        );
        let heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: $JS.FC.BENCH.x.2\r\n\r\n";
        put(
            &mut bytes,
            format_args!("HMSG _INBOX.a.deliver 1 {0} {0}\r\n", heartbeat.len()),
        );
        bytes.extend_from_slice(heartbeat);
        bytes.extend_from_slice(b"\r\n");
        let (recorder, out) = feed(&mut JetStream::new(slots(&["a", "b"])), &bytes, 7).unwrap();
        assert!(recorder.texts.is_empty());
        assert_eq!(
            out,
            b"PUB $JS.FC.BENCH.x.1 0\r\n\r\nPUB $JS.FC.BENCH.x.2 0\r\n\r\n"
        );
    }

    #[test]
    fn a_publisher_waits_for_acknowledgements() {
        let mut codec = JetStream::new(slots(&["a"]));
        let mut out = Vec::new();
        for _ in 0..MAX_UNACKNOWLEDGED {
            assert!(codec.publish(0, b"hello", &mut out));
        }
        assert!(!codec.publish(0, b"hello", &mut out));
        assert!(out.starts_with(b"PUB bench.room _INBOX.a.answer 5\r\nhello\r\n"));
        let joined_and_acknowledged = b"MSG _INBOX.a.answer 2 2\r\n{}\r\nMSG _INBOX.a.answer 2 26\r\n{\"stream\":\"BENCH\",\"seq\":7}\r\n";
        feed(&mut codec, joined_and_acknowledged, 99).unwrap();
        assert!(codec.publish(0, b"hello", &mut out));
    }

    #[test]
    fn errors_and_malformed_input_are_reported() {
        for wrong in [
            &b"-ERR 'Slow Consumer'\r\n"[..],
            b"HTTP/1.1 400\r\n",
            b"MSG bench.room 1 x\r\n",
            b"HMSG bench.room 1 9 3\r\nabc\r\n",
            b"MSG _INBOX.a.answer 2 32\r\n{\"error\":{\"code\":404,\"x\":\"none\"}}\r\n",
            b"HMSG _INBOX.a.answer 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
        ] {
            assert!(
                feed(&mut JetStream::new(slots(&["a"])), wrong, 999).is_err(),
                "{}",
                wrong.escape_ascii()
            );
        }
    }
}
