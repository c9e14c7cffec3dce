//! What the server logs about its clients.

use std::process::Command;

use crate::process::{CHITCHAT, Process, serve, serve_with};

#[test]
fn lines_about_participants_have_the_address_of_the_client() {
    let mut server = serve(&[]);
    let mut command = Command::new(CHITCHAT);
    command.args(["chat", "--name", "Ada", "--server", &server.address.to_string()]);
    let mut ada = Process::start(&mut command);
    ada.close_stdin();
    for event in ["client_joined", "client_left"] {
        let line = server.log_line(&format!("\"event\":\"{event}\""));
        assert!(line.contains("\"peer\":\"127.0.0.1:"), "{line}");
    }
    ada.wait();
}

#[test]
fn the_log_says_that_rust_log_has_no_effect() {
    let mut server = serve_with(&[], &[("RUST_LOG", "debug")]);
    server.log_line("\"event\":\"rust_log_ignored\"");
}
