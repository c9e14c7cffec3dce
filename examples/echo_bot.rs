//! A bot that repeats the messages of other participants. It reconnects and resumes automatically, and leaves on Ctrl-C.
//!
//! ```sh
//! cargo run --example echo_bot -- 127.0.0.1:50052 tea
//! ```

use std::error::Error;

use chitchat::client::{ConnectOptions, Event, JoinOptions, RetryPolicy, ServerAddress, Session};
use chitchat::proto::EventType;
use tokio_stream::StreamExt as _;

const NAME: &str = "Echo";

/// Runs the bot until `stop` completes, then leaves the room.
pub async fn run(
    server: &ServerAddress,
    room: &str,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let join = JoinOptions::new(NAME).room(room);
    let mut session = Session::join(server, &ConnectOptions::default(), RetryPolicy::default(), join).await?;
    let mut stop = std::pin::pin!(stop);
    let mut is_stopping = false;
    loop {
        let event = tokio::select! {
            event = session.try_next() => event?,
            () = &mut stop, if !is_stopping => {
                is_stopping = true;
                session.leave();
                continue;
            }
        };
        match event {
            None => return Ok(()),
            Some(Event::Message(message)) => {
                // Private notices have no sequence number.
                let is_text = message.r#type() == EventType::Message && message.sequence > 0;
                if is_text && message.sender_name != NAME && !is_stopping {
                    session.send(message.msg_stream)?;
                }
            }
            Some(other) => eprintln!("{other:?}"),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:50052".into());
    let room = arguments.next().unwrap_or_default();
    run(&server.parse()?, &room, async {
        drop(tokio::signal::ctrl_c().await);
    })
    .await
}
