//! Mermaid sequence diagrams.

use std::fmt::Write as _;

use super::conversation::{Client, Conversation};

/// Words that cannot be the id of a participant. Mermaid ignores their case.
const RESERVED: [&str; 35] = [
    "accdescr",
    "acctitle",
    "activate",
    "actor",
    "alt",
    "and",
    "as",
    "autonumber",
    "box",
    "break",
    "create",
    "critical",
    "deactivate",
    "destroy",
    "details",
    "else",
    "end",
    "left",
    "link",
    "links",
    "loop",
    "note",
    "opt",
    "option",
    "over",
    "par",
    "par_over",
    "participant",
    "properties",
    "rect",
    "right",
    "sequencediagram",
    "server",
    "title",
    "wrap",
];

/// Draws a participant for each client and one for the server: a solid arrow for each message that a client sent, and a dashed
/// one for each that the server sent.
pub(super) fn draw(conversation: &Conversation) -> String {
    let ids: Vec<String> = conversation
        .clients
        .iter()
        .enumerate()
        .map(|(index, client)| id(index, client))
        .collect();
    let mut out = String::from("sequenceDiagram\n    participant Server\n");
    for (id, client) in ids.iter().zip(&conversation.clients) {
        if *id == client.name {
            writeln!(out, "    participant {id}")
        } else {
            writeln!(out, "    participant {id} as {}", escape(&client.name))
        }
        .expect("writing to a String cannot fail");
    }
    for step in &conversation.steps {
        if let Some(sender) = step.sender {
            writeln!(out, "    {}->>Server: {}", ids[sender], escape(&step.call()))
                .expect("writing to a String cannot fail");
        }
        let broadcast = escape(&step.broadcast());
        for &receiver in &step.receivers {
            writeln!(out, "    Server-->>{}: {broadcast}", ids[receiver])
                .expect("writing to a String cannot fail");
        }
    }
    out
}

/// The name, if it can be an id.
fn id(index: usize, client: &Client) -> String {
    let name = &client.name;
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    // Names like P2 are ids of others.
    let is_numbered = name
        .strip_prefix('P')
        .is_some_and(|rest| rest.parse::<usize>().is_ok());
    if is_word && !is_numbered && !RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
        name.clone()
    } else {
        format!("P{}", index + 1)
    }
}

/// Escapes the characters that have a meaning in Mermaid or in the HTML that it makes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '#' | ';' | '<' | '>' | '&' | '%' | '\\' | '{' | '}' | '$') {
            write!(escaped, "#{};", u32::from(c)).expect("writing to a String cannot fail");
        } else {
            escaped.push(c);
        }
    }
    escaped
}
