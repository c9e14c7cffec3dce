//! Reads files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::CHECKOUT;

pub fn path(relative: &str) -> PathBuf {
    Path::new(CHECKOUT).join(relative)
}

pub fn text(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

pub fn yaml(relative: &str) -> Value {
    serde_saphyr::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

pub fn json(relative: &str) -> Value {
    serde_json::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// The text with the default of each `${VARIABLE:-default}`, as compose reads it where no variable is set.
pub fn with_defaults(text: &str) -> String {
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, after) = part.split_once('}').expect("a variable ends");
        filled.push_str(variable.split_once(":-").expect("a default").1);
        filled.push_str(after);
    }
    filled
}

/// The source of the server, all files.
pub fn sources() -> String {
    fn read(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, into);
            } else {
                into.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut source = String::new();
    read(&path("src"), &mut source);
    source
}

/// The sorted names of the files in a folder with this ending.
pub fn names(folder: &str, ending: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path(folder))
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(ending))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{folder} has no {ending}");
    names
}

/// The items of a list. Panics if there is none.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("no list {key} in {value}"))
}

/// A string. Panics if there is none.
pub fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// The strings of a list; empty if there is no list.
pub fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}
