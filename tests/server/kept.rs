//! What is kept of a log, and what one gets of it.

use std::path::Path;
use std::time::Duration;

use chitchat::config::StoreOptions;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::{GetHistoryRequest, GetHistoryResponse, JoinMsgLeave};
use chitchat::store::Durability;
use tonic::transport::Channel;

use crate::harness::{Client, TestServer, join, message};

async fn calls(server: &TestServer) -> ChatServiceClient<Channel> {
    ChatServiceClient::new(server.channel().await).max_decoding_message_size(16 << 20)
}

/// Says `text` so often and waits for the last echo.
async fn say(ada: &mut Client, text: &str, count: usize) {
    let (mut said, mut heard) = (0, 0);
    while heard < count {
        // Some are on their way at a time, as many as an inbox takes in any case.
        if said < count && said - heard < 100 {
            ada.say(0, text).await;
            said += 1;
        } else if ada.next().await.msg_stream == text {
            heard += 1;
        }
    }
}

async fn history(
    calls: &mut ChatServiceClient<Channel>,
    page: Option<Page>,
    limit: u32,
) -> GetHistoryResponse {
    let request = GetHistoryRequest {
        room: String::new(),
        page,
        limit,
    };
    calls.get_history(request).await.unwrap().into_inner()
}

fn sequences(answer: &GetHistoryResponse) -> Vec<u64> {
    answer.messages.iter().map(|message| message.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_too_large_is_cut_where_nobody_looks_first() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    // 6 KB each: a page holds about 350.
    say(&mut ada, &"山".repeat(2_000), 600).await;
    let mut calls = calls(&server).await;
    let newest = history(&mut calls, None, 1_000).await;
    assert_eq!(newest.last_sequence, 601);
    let newest = sequences(&newest);
    assert_eq!(newest.last(), Some(&601));
    // Paging back from there comes by everything.
    let mut all = newest;
    while all[0] > 1 {
        let before = history(&mut calls, Some(Page::BeforeSequence(all[0])), 1_000).await;
        all.splice(0..0, sequences(&before));
    }
    assert_eq!(all, (1..=601).collect::<Vec<_>>());
    let forwards = history(&mut calls, Some(Page::AfterSequence(0)), 1_000).await;
    let forwards = sequences(&forwards);
    assert!((100..600).contains(&forwards.len()), "{}", forwards.len());
    assert_eq!(forwards, all[..forwards.len()]);
}

fn serve_in(directory: &Path) -> impl Future<Output = TestServer> + use<> {
    let directory = directory.to_owned();
    TestServer::with(|config| {
        config.store = StoreOptions::Disk {
            directory,
            durability: Durability::Os,
            accept_loss: false,
        };
        config.hub.resume_grace = Duration::from_secs(60);
        config.retention.max_events = 1_000;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_cut_to_its_limit_however_often_the_server_starts() {
    let directory = std::env::temp_dir().join(format!("chitchat-kept-{}", std::process::id()));
    std::fs::remove_dir_all(&directory).ok();
    // Fewer in one life than there are between two snapshots.
    for _ in 0..3 {
        let server = serve_in(&directory).await;
        let mut ada = server.join("Ada").await;
        say(&mut ada, "x", 4_000).await;
        server.end().await.unwrap().unwrap();
    }
    let server = serve_in(&directory).await;
    let mut calls = calls(&server).await;
    let kept = history(&mut calls, Some(Page::AfterSequence(0)), 5).await;
    assert!(kept.first_sequence > 1, "{kept:?}");
    // Who begins before what is kept begins with that.
    let first = kept.first_sequence;
    assert_eq!(sequences(&kept), (first..first + 5).collect::<Vec<_>>());
    server.end().await.unwrap().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_under_its_own_name_and_at_a_time_that_can_be() {
    let server = TestServer::with(|config| config.rules.allow_duplicate_names = true).await;
    let mut ada = server.open().await;
    ada.send(JoinMsgLeave {
        wants_welcome: true,
        ..join("Ada")
    })
    .await;
    let welcome = ada.next().await.welcome.unwrap();
    let back = |timestamp| JoinMsgLeave {
        session_token: welcome.session_token.clone(),
        timestamp,
        ..join("Somebody Else")
    };
    for timestamp in [-1, i64::MAX] {
        let mut late = server.open().await;
        late.send(back(timestamp)).await;
        assert_eq!(late.end().await.code(), tonic::Code::InvalidArgument);
    }
    // Neither did that end the session, nor does it when another of the name comes while she is lost.
    drop(ada);
    server.until_metric("chitchat_connected_clients", 0.0).await;
    let mut namesake = server.join("Ada").await;
    let mut again = server.open().await;
    again.send(back(0)).await;
    let answer = again.next().await;
    assert_eq!(answer.msg_stream, "Welcome to lobby, Ada.");
    assert_eq!(answer.welcome.unwrap().participant_id, welcome.participant_id);
    namesake.send(message(0, "nobody left")).await;
    let heard = namesake.next().await;
    assert_eq!((heard.sequence, heard.msg_stream.as_str()), (3, "nobody left"));
}
