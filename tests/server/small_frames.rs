//! A client that sends each message in a DATA frame of its own and does not read.

use crate::harness::{TestServer, join, message};
use crate::raw_http2::{PING, RawConnection, call, data};

/// Opens `streams` calls that each send `text` `count` times, and returns the type of the frame that answers a PING after them.
async fn answer_after(server: &TestServer, streams: usize, count: usize, text: &str) -> u8 {
    // A window of zero for the responses, so that the server stops reading the requests.
    let mut connection = RawConnection::open(server, 0).await;
    let mut sent = Vec::new();
    for stream in (1..).step_by(2).take(streams) {
        sent.extend(call(stream, "Chat"));
        sent.extend(data(stream, &join(&format!("client {stream}"))));
        sent.extend(data(stream, &message(0, text)).repeat(count));
    }
    connection.send(&sent).await;
    connection.ping().await
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_short_messages_do_not_close_their_connection() {
    let server = TestServer::start().await;
    // A stream window full of the shortest messages, and a gateway whose clients each sent a few.
    for (streams, count, text) in [(1, 4_800, "y"), (20, 200, "hey you"), (300, 12, "hey")] {
        let answer = answer_after(&server, streams, count, text).await;
        assert_eq!(answer, PING, "{streams} streams with {count} messages");
    }
}
