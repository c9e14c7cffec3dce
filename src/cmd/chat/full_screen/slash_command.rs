//! The commands of the input line.

use crate::domain::{Name, RoomName};

/// Commands, their arguments, and what they do.
pub(super) const COMMANDS: [(&str, &str, &str); 11] = [
    ("/help", "", "shows the commands and keys"),
    ("/who", "", "lists the participants"),
    ("/rooms", "", "lists the rooms"),
    ("/join", "ROOM", "enters another room"),
    ("/name", "NAME", "takes another name: leaves and joins again"),
    ("/me", "TEXT", "says what you do"),
    (
        "/search",
        "TEXT",
        "finds a text; Ctrl-R and Ctrl-S go to older and newer places",
    ),
    ("/clear", "", "empties the screen"),
    ("/bare", "", "shows plain lines, to select and copy; also F2"),
    ("/leave", "", "leaves the room and ends"),
    ("/quit", "", "the same"),
];

/// What an input asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SlashCommand {
    Help,
    Who,
    Rooms,
    Join(RoomName),
    Name(Name),
    Search(String),
    Clear,
    Bare,
    Leave,
    /// Send this text to the room.
    Say(String),
}

/// Parses an input that is not empty.
///
/// # Errors
/// Why it cannot be obeyed. Nothing is sent then.
pub(super) fn parse(input: &str) -> Result<SlashCommand, String> {
    let input = input.trim();
    if input.starts_with("//") {
        return Ok(SlashCommand::Say(input[1..].to_owned()));
    }
    if !input.starts_with('/') {
        return Ok(SlashCommand::Say(input.to_owned()));
    }
    let (command, argument) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let argument = argument.trim();
    let Some((_, takes, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
        return Err(format!(
            "there is no command {command}; /help lists the commands, and /{command} sends it as a text"
        ));
    };
    if takes.is_empty() && !argument.is_empty() {
        return Err(format!("{command} takes no argument"));
    }
    if !takes.is_empty() && argument.is_empty() {
        return Err(format!("usage: {command} {takes}"));
    }
    Ok(match command {
        "/help" => SlashCommand::Help,
        "/who" => SlashCommand::Who,
        "/rooms" => SlashCommand::Rooms,
        "/join" => {
            let room = RoomName::try_from(argument);
            SlashCommand::Join(room.map_err(|error| format!("the name of the room {error}"))?)
        }
        "/name" => {
            let name = Name::try_from(argument);
            SlashCommand::Name(name.map_err(|error| format!("the name {error}"))?)
        }
        "/search" => SlashCommand::Search(argument.to_owned()),
        "/clear" => SlashCommand::Clear,
        "/bare" => SlashCommand::Bare,
        "/leave" | "/quit" => SlashCommand::Leave,
        // "/me": the clients that know it show it as an action.
        _ => SlashCommand::Say(input.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Result<SlashCommand, String> {
        Ok(SlashCommand::Say(text.into()))
    }

    #[test]
    fn texts_are_sent() {
        assert_eq!(parse(" hello "), say("hello"));
        assert_eq!(parse("//etc/hosts"), say("/etc/hosts"));
        assert_eq!(parse("/me waves"), say("/me waves"));
        assert_eq!(parse("a\nb"), say("a\nb"));
    }

    #[test]
    fn commands_are_obeyed() {
        assert_eq!(parse("/who"), Ok(SlashCommand::Who));
        assert_eq!(parse("/quit"), Ok(SlashCommand::Leave));
        let tea = RoomName::try_from("tea").unwrap();
        assert_eq!(parse("/join  tea "), Ok(SlashCommand::Join(tea)));
        assert_eq!(parse("/search a  b"), Ok(SlashCommand::Search("a  b".into())));
    }

    #[test]
    fn every_command_is_parsed() {
        for (command, argument, _) in COMMANDS {
            let input = format!("{command} {argument}");
            assert!(parse(&input).is_ok(), "{input}");
        }
    }

    #[test]
    fn what_is_wrong_is_not_sent() {
        for (input, error) in [
            (
                "/etc",
                "there is no command /etc; /help lists the commands, and //etc sends it as a text",
            ),
            (
                "/",
                "there is no command /; /help lists the commands, and // sends it as a text",
            ),
            ("/join", "usage: /join ROOM"),
            ("/me", "usage: /me TEXT"),
            ("/who cares", "/who takes no argument"),
        ] {
            assert_eq!(parse(input), Err(error.into()));
        }
        assert!(parse("/name \u{202e}").is_err());
    }
}
