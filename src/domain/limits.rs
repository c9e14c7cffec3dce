//! Every limit of the domain, in one place, with its reason.

/// The longest name of a participant or a room, in characters. Longer ones do not fit beside a text on a line of 80
/// columns, and every broadcast carries both.
pub const MAX_NAME_CHARS: usize = 64;

/// The longest message id, in bytes (it is ASCII): a UUID has 36, a SHA-256 in hexadecimal 64.
pub const MAX_MESSAGE_ID_LEN: usize = 64;

/// How many of a room's newest message ids are remembered for idempotent sends. A client keeps at most some hundred
/// messages unacknowledged and sends them again within seconds, so this covers a busy room's reconnects; at about 80
/// bytes each it bounds the memory at 5 MiB a room.
pub const MESSAGE_IDS_REMEMBERED: usize = 65_536;

/// The longest `traceparent`, in bytes: version 00 of the W3C recommendation has exactly 55.
pub const MAX_TRACEPARENT_LEN: usize = 55;

/// The longest `tracestate`, in bytes: what the W3C recommendation asks everybody to propagate.
pub const MAX_TRACESTATE_LEN: usize = 512;

/// The latest Lamport time that a client may name. Ticks count by one from there on, so half of the range of `int64` is
/// left for them: more events than any room will see.
pub const MAX_TIMESTAMP: i64 = 1 << 62;

/// The first id that a room assigns to a participant who brings none. Clients that choose their own tend to count from
/// one or use small numbers; starting here keeps out of their way.
pub const FIRST_ASSIGNED_ID: i32 = 1_000_001;

/// The name under which the server itself speaks: nobody else may, since the first version's clients show no more than
/// a name.
pub const SERVER_NAME: &str = "Server";

/// The default of [`Rules::max_message_chars`]: a long paragraph.
pub const DEFAULT_MAX_MESSAGE_CHARS: usize = 2_000;

/// The most that [`Rules::max_message_chars`] can be: the transport reserves four bytes a character for every message
/// that is being received.
pub const MAX_MAX_MESSAGE_CHARS: usize = 100_000;

/// The default of [`Rules::max_clock_ahead`]. A client that merges what it receives is never ahead by more than the
/// messages it sent since; a client that lies moves the clock by a million a message, and would need four million
/// million messages to reach [`MAX_TIMESTAMP`].
pub const DEFAULT_MAX_CLOCK_AHEAD: i64 = 1_000_000;

/// The default of [`Rules::max_participants`].
pub const DEFAULT_MAX_PARTICIPANTS: usize = 50_000;

/// The rules of a room that whoever runs the server may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The longest text, in characters (Unicode scalar values).
    pub max_message_chars: usize,
    /// How far a client's time stamp may be ahead of the room's clock.
    pub max_clock_ahead: i64,
    /// How many may be in a room at a time.
    pub max_participants: usize,
    /// Whether two participants of a room may have the same name.
    pub allow_duplicate_names: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_message_chars: DEFAULT_MAX_MESSAGE_CHARS,
            max_clock_ahead: DEFAULT_MAX_CLOCK_AHEAD,
            max_participants: DEFAULT_MAX_PARTICIPANTS,
            allow_duplicate_names: false,
        }
    }
}
