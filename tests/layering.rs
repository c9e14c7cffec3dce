//! Checks the architecture in the source: imports go downward only, there are no import cycles, and the client library depends
//! on nothing of the server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The layers, from the lowest to the highest. A module may use modules of lower layers, and those of its own layer as
/// long as there is no cycle.
const LAYERS: [&[&str]; 7] = [
    &[
        "blocking",
        "der",
        "domain",
        "failpoint",
        "file_poller",
        "procfs",
        "proto",
        "rate_limiter",
        "regular_file",
        "run_queue",
        "spare_capacity",
        "tls",
        "wall_clock",
    ],
    &["auth", "reason", "store"],
    &["cluster", "hub"],
    &["rpc"],
    &["admin", "config", "memory_plan", "signals", "telemetry"],
    &["cmd"],
    &["fuzzing"],
];

/// What the client library may use. Only these other modules may use the client library.
const CLIENT_MAY_USE: [&str; 3] = ["domain", "proto", "tls"];
const MAY_USE_CLIENT: [&str; 3] = ["telemetry", "cmd", "fuzzing"];

/// Crates that a program with the client library alone must not depend on.
const SERVER_CRATES: [&str; 8] = [
    "axum",
    "clap",
    "crc32c",
    "metrics",
    "opentelemetry",
    "opentelemetry-otlp",
    "ratatui",
    "tracing-subscriber",
];

/// The path of a module from the crate root, or of an item in it.
type ModulePath = Vec<String>;

/// A source file: the modules and items that it names, and those that it re-exports.
#[derive(Debug, Default)]
struct Source {
    used: Vec<ModulePath>,
    /// Name and original path of each re-exported item.
    reexported: Vec<(String, ModulePath)>,
}

/// All modules of the crate, by path.
#[derive(Debug, Default)]
struct Crate(BTreeMap<ModulePath, Source>);

/// A file imports another.
type Edge<'a> = (&'a ModulePath, &'a ModulePath);

impl Crate {
    /// Parses all files below `src`, without those that contain only tests.
    fn read(src: &Path) -> Self {
        let mut files = Vec::new();
        let mut directories = vec![src.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(src).unwrap().with_extension("");
                    files.push((
                        name.to_str().unwrap().to_owned(),
                        fs::read_to_string(path).unwrap(),
                    ));
                }
            }
        }
        Self::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Parses files, given by their paths below `src` without extension.
    fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let files: BTreeMap<ModulePath, &str> = files
            .into_iter()
            .filter(|(name, _)| !name.ends_with("tests") && !name.ends_with("fixtures") && *name != "main")
            .map(|(name, text)| {
                let mut module: ModulePath = name.split('/').map(str::to_owned).collect();
                module.retain(|part| part != "mod" && part != "lib");
                (module, text)
            })
            .collect();
        let parsed = files.iter().map(|(module, text)| {
            let is_child = |name: &str| files.contains_key(&joined(module, [name]));
            (module.clone(), parse(module, &tokens(text), is_child))
        });
        Self(parsed.collect())
    }

    /// The module that defines what a path names, which is followed through re-exports.
    fn definition(&self, path: &[String]) -> Option<&ModulePath> {
        let length = (0..=path.len())
            .rev()
            .find(|length| self.0.contains_key(&path[..*length]))?;
        let (module, source) = self.0.get_key_value(&path[..length])?;
        let reexport = path.get(length).and_then(|item| {
            let mut reexports = source.reexported.iter();
            reexports.find_map(|(name, original)| (name == item).then_some(original))
        });
        match reexport {
            Some(original) if original != path => self.definition(original),
            _ => Some(module),
        }
    }

    /// All imports of one file by another.
    fn edges(&self) -> BTreeSet<Edge<'_>> {
        let mut edges = BTreeSet::new();
        for (module, source) in &self.0 {
            let used = source.used.iter().filter_map(|path| self.definition(path));
            edges.extend(used.filter(|used| *used != module).map(|used| (module, used)));
        }
        edges
    }

    /// Imports that do not go downward.
    fn upward_imports(&self) -> Vec<String> {
        let edges = self.edges();
        // The root module contains nothing but the list of the modules.
        let edges = edges
            .iter()
            .filter_map(|(from, to)| Some((from, to, from.first()?, to.first()?)));
        let wrong = edges.filter(|(_, _, from, to)| from != to && !may_use(from, to));
        wrong
            .map(|(from, to, ..)| format!("{} uses {}", from.join("::"), to.join("::")))
            .collect()
    }

    /// Groups of files that import each other in a cycle.
    fn cycles(&self) -> Vec<String> {
        let mut reachable: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> = BTreeMap::new();
        let edges = self.edges();
        for module in self.0.keys() {
            let mut pending = vec![module];
            let found = reachable.entry(module).or_default();
            while let Some(from) = pending.pop() {
                let targets = edges.iter().filter(|edge| edge.0 == from).map(|edge| edge.1);
                pending.extend(targets.filter(|target| found.insert(target)));
            }
        }
        let cycle_of = |module: &ModulePath| -> Vec<String> {
            let members = reachable[module]
                .iter()
                .filter(|other| reachable[**other].contains(module));
            members.map(|member| member.join("::")).collect()
        };
        let cycles: BTreeSet<Vec<String>> = self.0.keys().map(cycle_of).collect();
        cycles
            .iter()
            .filter(|cycle| !cycle.is_empty())
            .map(|cycle| cycle.join(", "))
            .collect()
    }
}

/// Whether a top-level module may use another.
fn may_use(from: &str, to: &str) -> bool {
    if from == "client" {
        return CLIENT_MAY_USE.contains(&to);
    }
    if to == "client" {
        return MAY_USE_CLIENT.contains(&from);
    }
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to <= from,
        _ => panic!("{from} or {to} is in no layer"),
    }
}

fn joined<'a>(module: &[String], names: impl IntoIterator<Item = &'a str>) -> ModulePath {
    module
        .iter()
        .cloned()
        .chain(names.into_iter().map(str::to_owned))
        .collect()
}

/// Splits Rust source into identifiers, `::` and single characters, without comments, literals and test code.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("r\"") || rest.starts_with("r#\"") {
            let hashes = rest[1..].find('"').unwrap();
            let end = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 2;
            start + rest[start..].find(&end).unwrap() + end.len()
        } else if first == '"' {
            let mut is_escaped = false;
            let mut end = rest[1..].char_indices().find(|(_, c)| {
                let is_end = *c == '"' && !is_escaped;
                is_escaped = *c == '\\' && !is_escaped;
                is_end
            });
            end.take().map_or(rest.len(), |(at, _)| at + 2)
        } else if rest.starts_with("'\\") {
            3 + rest[3..].find('\'').unwrap()
        } else if first == '\'' && rest.chars().nth(2) == Some('\'') {
            rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at)
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if is_word(first) && !token.starts_with("r\"") && !token.starts_with("r#")
            || !"\"'/ \n".contains(first)
        {
            tokens.push(token);
        }
        rest = after;
    }
    without_tests(&tokens)
}

/// Removes the items with the attribute `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut rest = tokens;
    while let Some((first, after)) = rest.split_first() {
        let Some(item) = rest.strip_prefix(&CFG_TEST) else {
            kept.push(*first);
            rest = after;
            continue;
        };
        let mut depth = 0_usize;
        let end = item.iter().position(|token| {
            depth += usize::from(*token == "{");
            let is_end = depth <= 1 && *token == "}" || depth == 0 && *token == ";";
            depth -= usize::from(*token == "}");
            is_end
        });
        rest = &item[end.map_or(item.len(), |end| end + 1)..];
    }
    kept
}

/// Finds the paths in a file. `is_child` says whether a name is that of a child module.
fn parse(module: &[String], tokens: &[&str], is_child: impl Fn(&str) -> bool) -> Source {
    let absolute = |path: &[&str]| -> Option<ModulePath> {
        let supers = path.iter().take_while(|part| **part == "super").count();
        match path.first()? {
            &"crate" => Some(joined(&[], path[1..].iter().copied())),
            &"super" => Some(joined(
                &module[..module.len() - supers],
                path[supers..].iter().copied(),
            )),
            &"self" => Some(joined(module, path[1..].iter().copied())),
            name if is_child(name) => Some(joined(module, path.iter().copied())),
            _ => None,
        }
    };
    let mut source = Source::default();
    let mut at = 0;
    while at < tokens.len() {
        let is_public = at > 0 && ["pub", ")"].contains(&tokens[at - 1]);
        if tokens[at] == "use" {
            let end = at + tokens[at..].iter().position(|token| *token == ";").unwrap();
            let mut paths = Vec::new();
            expand(&tokens[at + 1..end], &[], &mut paths);
            for (path, name) in paths {
                match absolute(&path) {
                    Some(path) if is_public => source.reexported.push((name.to_owned(), path)),
                    Some(path) => source.used.push(path),
                    None => {}
                }
            }
            at = end;
        } else if tokens.get(at + 1) == Some(&"::") && (at == 0 || !["::", "in"].contains(&tokens[at - 1])) {
            let mut path = vec![tokens[at]];
            while tokens.get(at + 1) == Some(&"::") && tokens.get(at + 2).is_some() {
                path.push(tokens[at + 2]);
                at += 2;
            }
            source.used.extend(absolute(&path));
        }
        at += 1;
    }
    source
}

/// Expands the tree of a `use` declaration to paths and the names that they get.
fn expand<'a>(tree: &[&'a str], prefix: &[&'a str], paths: &mut Vec<(Vec<&'a str>, &'a str)>) {
    let mut depth = 0;
    let branches = tree.split(|token| {
        depth += i32::from(*token == "{") - i32::from(*token == "}");
        depth == 0 && *token == ","
    });
    for branch in branches.filter(|branch| !branch.is_empty()) {
        if let Some(open) = branch.iter().position(|token| *token == "{") {
            let front = branch[..open].iter().copied().filter(|token| *token != "::");
            let prefix: Vec<&str> = prefix.iter().copied().chain(front).collect();
            expand(&branch[open + 1..branch.len() - 1], &prefix, paths);
            continue;
        }
        let (path, alias) = match branch {
            [path @ .., "as", alias] => (path, Some(*alias)),
            path => (path, None),
        };
        let path = path
            .iter()
            .copied()
            .filter(|token| *token != "::" && *token != "self" || prefix.is_empty());
        let path: Vec<&str> = prefix
            .iter()
            .copied()
            .chain(path.filter(|token| *token != "::"))
            .collect();
        let name = alias.unwrap_or(path[path.len() - 1]);
        paths.push((path, name));
    }
}

#[test]
fn imports_go_downward_only() {
    let source = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert_eq!(source.upward_imports(), Vec::<String>::new());
}

#[test]
fn there_are_no_import_cycles() {
    let source = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert_eq!(source.cycles(), Vec::<String>::new());
}

#[test]
fn the_client_library_depends_on_no_crate_of_the_server() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--package",
            "chitchat",
            "--no-default-features",
            "--features",
            "tls",
        ])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{lib}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!(crates.contains("tonic") && crates.contains("rustls"), "{tree}");
    for name in SERVER_CRATES {
        assert!(
            !crates.contains(&*name.replace('-', "_")),
            "{name} is a dependency"
        );
    }
}

#[test]
fn an_upward_import_is_found_however_it_is_written() {
    for import in [
        "use crate::hub::Hub;",
        "use crate::{domain::Room, hub::{self, Hub}};",
        "fn run(hub: &super::hub::Hub) {}",
        "use super::Reexported;",
        "const TEXT: &str = \"\\\"\"; use crate::hub as other;",
    ] {
        let files = [
            ("lib", "pub use hub::Hub as Reexported;"),
            ("domain", ""),
            ("hub/mod", ""),
            ("store", import),
        ];
        assert_eq!(
            Crate::parse(files).upward_imports(),
            ["store uses hub"],
            "{import}"
        );
    }
}

#[test]
fn tests_comments_and_literals_are_ignored() {
    let text = "
        // use crate::hub::Hub;
        const TEXT: &str = \"crate::hub::Hub\";
        const RAW: &str = r#\"crate::hub::\"Hub\"#;
        const QUOTE: char = '\"';
        #[cfg(test)]
        use crate::hub::Hub;
        fn lifetime<'a>(text: &'a str) -> &'a str { text }
        #[cfg(test)]
        mod tests { fn run() { crate::hub::run(); } }
        use crate::domain::Room;";
    let source = Crate::parse([("domain", ""), ("hub/mod", ""), ("store", text)]);
    assert_eq!(source.upward_imports(), Vec::<String>::new());
    let domain = source.0.keys().find(|module| *module == &["domain"]).unwrap();
    assert!(
        source
            .edges()
            .iter()
            .any(|(from, to)| from[0] == "store" && *to == domain)
    );
}

#[test]
fn a_cycle_is_found_through_reexports() {
    let files = [
        (
            "hub/mod",
            "mod room; mod feed; mod clock; pub use feed::Feed; pub(crate) use room::Room;",
        ),
        ("hub/room", "use super::Feed; use super::clock::Clock;"),
        ("hub/feed", "fn run(room: &crate::hub::Room) {}"),
        ("hub/clock", ""),
    ];
    assert_eq!(Crate::parse(files).cycles(), ["hub::feed, hub::room"]);
}
