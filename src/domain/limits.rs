//! Every limit of the domain, with its reason.

use std::time::Duration;

/// The longest name of a participant or a room, in characters. A longer one would leave no space for a text on a line of 80
/// columns, and every broadcast carries both names.
pub const MAX_NAME_CHARS: usize = 64;

/// The maximum number of combining marks on one letter of a participant's name. Four occur in some scripts; a stack of more
/// covers other lines.
pub const MAX_MARKS_PER_LETTER: usize = 4;

/// The longest message id, in bytes (it is ASCII). A UUID has 36, a SHA-256 in hexadecimal 64.
pub const MAX_MESSAGE_ID_LEN: usize = 64;

/// In how many of a room's newest events message ids are remembered for idempotent sends. A client keeps at most some hundred
/// messages unacknowledged and retries within seconds, so this covers the reconnects of a busy room. At up to 48 bytes per
/// id the memory is bounded by 3 MiB per room.
pub const DEDUP_WINDOW_LEN: usize = 65_536;

/// The longest `traceparent`, in bytes: version 00 of the W3C recommendation has exactly 55.
pub const MAX_TRACEPARENT_LEN: usize = 55;

/// The longest `tracestate`, in bytes: the W3C recommendation asks to propagate at least this much.
pub const MAX_TRACESTATE_LEN: usize = 512;

/// From this Lamport time on, a client's timestamp may be ahead of the room's clock by no more than
/// [`MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT`]. JavaScript's numbers are exact up to 2^53, twice as much.
pub const SOFT_CLOCK_LIMIT: i64 = 1 << 52;

/// How far a timestamp may be ahead of a clock that has reached [`SOFT_CLOCK_LIMIT`]: enough for the messages that a client sends
/// before it receives the first of them back. A client that lies needs 4 × 10¹² messages to reach 2^53 from there.
pub const MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT: i64 = 1_000;

/// The first id that a room assigns to a participant who chooses none. Clients that choose their own tend to use small
/// numbers.
pub const FIRST_ASSIGNED_ID: i32 = 1_000_001;

/// The last id that a room assigns; then it starts again. Clients cannot choose the ids between, so that an id that was
/// assigned is never confused with one that was chosen. These are far more ids than a log retains events, and few enough that
/// a client that chooses its id at random seldom meets one.
pub const LAST_ASSIGNED_ID: i32 = FIRST_ASSIGNED_ID - 1 + (1 << 24);

/// How far a room's clock skips when the room is recovered, in ticks. The ticks for texts that are too long are not in the
/// log, but clients have seen them. A room writes a snapshot before more of them than this are visible.
pub const CLOCK_RESERVE: i64 = 1_000;

/// The name of the server as a sender. No participant may have it, because the first version's clients show nothing but
/// the name.
pub const SERVER_NAME: &str = "Server";

/// The maximum number of bans of a room. Each is compared with whoever joins, and a snapshot lists them all.
pub const MAX_BANS: usize = 256;

/// The longest ban: one that is meant to last is a matter of tokens.
pub const MAX_BAN_TIME: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The longest reason that a moderator gives, in characters: a sentence or two.
pub const MAX_REASON_CHARS: usize = 200;

/// The default of [`Rules::max_message_chars`]: a long paragraph.
pub const DEFAULT_MAX_MESSAGE_CHARS: usize = 2_000;

/// The highest value of [`Rules::max_message_chars`]. The transport reserves four bytes per character for each message that
/// it is receiving.
pub const MAX_MESSAGE_CHARS_CEILING: usize = 100_000;

/// The default of [`Rules::max_clock_ahead`]. A client that merges what it receives is ahead by no more than the number of
/// messages that it sent since. A client that lies moves the clock by a million per message, and needs 4 × 10⁹ messages to
/// reach [`SOFT_CLOCK_LIMIT`].
pub const DEFAULT_MAX_CLOCK_AHEAD: i64 = 1_000_000;

/// The highest value of [`Rules::max_clock_ahead`]. A client that lies then reaches [`SOFT_CLOCK_LIMIT`] with 4 million messages.
pub const MAX_CLOCK_AHEAD_CEILING: i64 = 1_000_000_000;

/// The default of [`Rules::max_participants`].
pub const DEFAULT_MAX_PARTICIPANTS: usize = 50_000;

/// The limits of a room that the operator can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The longest text, in characters (Unicode scalar values): 1 to [`MAX_MESSAGE_CHARS_CEILING`].
    pub max_message_chars: usize,
    /// How far a client's timestamp may be ahead of the room's clock, in ticks: 1 to
    /// [`MAX_CLOCK_AHEAD_CEILING`].
    pub max_clock_ahead: i64,
    /// The maximum number of participants at a time: at least 1. One address has at most
    /// [three quarters](Rules::max_participants_per_address) of them.
    pub max_participants: usize,
    /// Whether participants may have the same name.
    pub allow_duplicate_names: bool,
}

impl Rules {
    /// The maximum number of participants from one address at a time: three quarters of all, rounded up. So one address can fill
    /// only a room that has less than four places.
    #[must_use]
    pub const fn max_participants_per_address(&self) -> usize {
        per_address(self.max_participants)
    }
}

/// The part of `limit` that one address may have: three quarters, rounded up.
pub(crate) const fn per_address(limit: usize) -> usize {
    limit - limit / 4
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
