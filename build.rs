//! Compiles `proto/` without a system `protoc`, keeps the descriptor set for server reflection, and notes the revision
//! that is built.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["chat.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("chat_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rustc-env=CHITCHAT_REVISION={}", revision());
    Ok(())
}

/// The revision that is built: `CHITCHAT_REVISION`, or what git says, or `unknown`.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=CHITCHAT_REVISION");
    // What is built for development is not built again for each commit.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && fs::exists(&log).unwrap_or_default()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    env::var("CHITCHAT_REVISION")
        .ok()
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .filter(|revision| {
            !revision.is_empty()
                && revision
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

/// What git answers, if there is a git and a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let answer = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| answer.trim().to_owned())
}
