//! A bridge from standard input to a room: posts each line and waits for its acknowledgement before it reads the next one.
//!
//! ```sh
//! tail -f /var/log/syslog | cargo run --example stdin_bridge -- 127.0.0.1:50052 tea syslog
//! ```

use std::error::Error;

use chitchat::client::{ConnectOptions, Publisher, RetryPolicy, ServerAddress};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader, stdin};

/// Posts the lines of `input` to `room` as `name`. Retries while the server is unavailable, without posting a line twice.
/// Stops at the first line that the server rejects.
pub async fn run(
    server: &ServerAddress,
    room: &str,
    name: &str,
    input: impl AsyncBufRead + Unpin,
) -> Result<(), Box<dyn Error>> {
    let options = ConnectOptions::default();
    let mut publisher = Publisher::open(server, &options, RetryPolicy::default(), name, room).await?;
    let mut lines = input.lines();
    while let Some(line) = lines.next_line().await? {
        if !line.trim().is_empty() {
            publisher.publish(&line).await?;
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:50052".into());
    let room = arguments.next().unwrap_or_default();
    let name = arguments.next().unwrap_or_else(|| "stdin".into());
    run(&server.parse()?, &room, &name, BufReader::new(stdin())).await
}
