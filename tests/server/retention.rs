//! Retention, and paging through the history.

use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::{GetHistoryRequest, GetHistoryResponse};
use tonic::transport::Channel;

use crate::harness::{Client, TestServer};

/// A client that accepts pages of the maximal size.
async fn client(server: &TestServer) -> ChatServiceClient<Channel> {
    server.client().await.max_decoding_message_size(16 << 20)
}

/// Sends `text` `count` times and waits for the last echo.
async fn say(ada: &mut Client, text: &str, count: usize) {
    let (mut sent, mut received) = (0, 0);
    while received < count {
        // Fewer are in flight than the room's mailbox holds.
        if sent < count && sent - received < 100 {
            ada.say(0, text).await;
            sent += 1;
        } else if ada.next().await.msg_stream == text {
            received += 1;
        }
    }
}

async fn history(
    client: &mut ChatServiceClient<Channel>,
    page: Option<Page>,
    limit: u32,
) -> GetHistoryResponse {
    let request = GetHistoryRequest {
        room: String::new(),
        page,
        limit,
    };
    client.get_history(request).await.unwrap().into_inner()
}

fn sequences(page: &GetHistoryResponse) -> Vec<u64> {
    page.messages.iter().map(|message| message.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_the_size_limit_keeps_the_events_next_to_its_start() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    // 6 KB each: a page holds about 350.
    say(&mut ada, &"山".repeat(2_000), 600).await;
    let mut client = client(&server).await;
    let newest = history(&mut client, None, 1_000).await;
    assert_eq!(newest.last_sequence, 601);
    let newest = sequences(&newest);
    assert_eq!(newest.last(), Some(&601));
    // Paging backwards from there returns every event.
    let mut all = newest;
    while all[0] > 1 {
        let before = history(&mut client, Some(Page::BeforeSequence(all[0])), 1_000).await;
        all.splice(0..0, sequences(&before));
    }
    assert_eq!(all, (1..=601).collect::<Vec<_>>());
    let forwards = history(&mut client, Some(Page::AfterSequence(0)), 1_000).await;
    let forwards = sequences(&forwards);
    assert!((100..600).contains(&forwards.len()), "{}", forwards.len());
    assert_eq!(forwards, all[..forwards.len()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_applies_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let serve = || TestServer::stored_in(directory.path(), |config| config.retention.max_events = 1_000);
    // Each run appends fewer events than there are between two snapshots.
    for _ in 0..3 {
        let server = serve().await;
        let mut ada = server.join("Ada").await;
        say(&mut ada, "x", 4_000).await;
        server.shut_down().await;
    }
    let server = serve().await;
    let mut client = client(&server).await;
    let oldest = history(&mut client, Some(Page::AfterSequence(0)), 5).await;
    assert!(oldest.first_sequence > 1, "{oldest:?}");
    // A page that starts before the first retained event starts with that event.
    let first = oldest.first_sequence;
    assert_eq!(sequences(&oldest), (first..first + 5).collect::<Vec<_>>());
    server.shut_down().await;
}
