//! The runbook as the web page that Prometheus serves, and what alerts and dashboards link to in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::dashboards::{all, panels};
use crate::files;
use crate::process::{serve, succeed};
use crate::prometheus::Prometheus;
use crate::rules::alerts;

/// Where the compose stack serves the page.
pub const URL: &str = "http://127.0.0.1:9090/consoles/runbook.html";

const SOURCE: &str = "docs/runbook.md";
const PAGE: &str = "deploy/prometheus/consoles/runbook.html";

const HEAD: &str = "<!doctype html>
<!-- Made from docs/runbook.md: change it there, then UPDATE=1 cargo test --test observability runbook. -->
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Runbook</title>
<style>
body { max-width: 50em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; color-scheme: light dark }
code { font-size: 0.9em }
td { padding: 0 1em 0 0; vertical-align: top }
h2:target { background: Highlight; color: HighlightText }
</style>
";

/// The section that an alert links to.
pub fn anchor(alert: &str) -> String {
    alert.to_lowercase()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The Markdown that the runbook uses within a line: code, bold, emphasis, links.
fn inline(text: &str) -> String {
    let mut html = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (mark, open, close) = match first {
            '`' => ("`", "<code>", "</code>"),
            '*' if rest.starts_with("**") => ("**", "<strong>", "</strong>"),
            '*' => ("*", "<em>", "</em>"),
            '[' => {
                let (label, after) = rest[1..].split_once("](").expect("a link");
                let (target, after) = after.split_once(')').expect("a link ends");
                // The page has no neighbours: a relative link is a file of the checkout.
                if target.starts_with('#') || target.starts_with("http") {
                    write!(html, "<a href=\"{target}\">{}</a>", inline(label)).unwrap();
                } else {
                    html.push_str(&inline(label));
                }
                rest = after;
                continue;
            }
            '<' => {
                let (target, after) = rest[1..].split_once('>').expect("a link ends");
                write!(html, "<a href=\"{target}\">{target}</a>").unwrap();
                rest = after;
                continue;
            }
            _ => {
                html.push_str(&escaped(&rest[..first.len_utf8()]));
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let (inside, after) = rest[mark.len()..]
            .split_once(mark)
            .unwrap_or_else(|| panic!("no {mark} ends {rest}"));
        let inside = if mark == "`" {
            escaped(inside)
        } else {
            inline(inside)
        };
        html.extend([open, &inside, close]);
        rest = after;
    }
    html
}

/// The Markdown that the runbook uses: headings, tables and paragraphs.
fn rendered(markdown: &str) -> String {
    let mut html = HEAD.to_owned();
    for block in markdown.trim().split("\n\n") {
        if let Some(title) = block.strip_prefix("# ") {
            writeln!(html, "<h1>{}</h1>", inline(title)).unwrap();
        } else if let Some(title) = block.strip_prefix("## ") {
            // By the alert's name too: a dashboard's link has nothing else.
            let id = anchor(title);
            writeln!(html, "<h2 id=\"{id}\"><a id=\"{title}\"></a>{title}</h2>").unwrap();
        } else if block.starts_with('|') {
            html.push_str("<table>\n");
            for row in block.lines().filter(|row| !row.starts_with("| ---")) {
                let cells = row.trim_matches('|').split('|');
                let cells: String = cells
                    .map(|cell| format!("<td>{}</td>", inline(cell.trim())))
                    .collect();
                writeln!(html, "<tr>{cells}</tr>").unwrap();
            }
            html.push_str("</table>\n");
        } else {
            writeln!(html, "<p>{}</p>", inline(&block.replace('\n', " "))).unwrap();
        }
    }
    html
}

#[test]
fn the_page_is_made_from_the_runbook() {
    let page = rendered(&files::text(SOURCE));
    // Prometheus expands it as a template.
    assert!(!page.contains("{{"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(files::path(PAGE), &page).unwrap();
    }
    assert!(
        files::text(PAGE) == page,
        "{PAGE} is out of date: UPDATE=1 cargo test --test observability runbook"
    );
}

#[test]
fn every_alert_and_every_link_leads_to_a_section() {
    let page = files::text(PAGE);
    for alert in alerts() {
        let name = files::string(&alert, "alert");
        let url = files::string(&alert["annotations"], "runbook_url");
        assert_eq!(url, format!("{URL}#{}", anchor(name)));
        for id in [anchor(name), name.to_owned()] {
            assert_eq!(page.matches(&format!("id=\"{id}\"")).count(), 1, "{id}");
        }
    }
    for part in page.split("href=\"#").skip(1) {
        let id = part.split('"').next().unwrap_or_default();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}

#[test]
fn one_command_changes_every_link() {
    let page = files::text("docs/observability.md");
    let (_, section) = page.split_once("## Links in alerts").expect("the section");
    let (_, command) = section.split_once("```sh\n").expect("a command");
    let (command, _) = command.split_once("```").expect("its end");
    let copy = tempfile::tempdir().unwrap();
    for folder in ["deploy", "dashboards"] {
        succeed(
            Command::new("cp")
                .arg("-R")
                .arg(files::path(folder))
                .arg(copy.path()),
            "",
        );
    }
    succeed(
        Command::new("sh").args(["-ec", command]).current_dir(copy.path()),
        "",
    );
    for file in [
        "deploy/prometheus/rules/alerts.yml",
        "deploy/prometheus/tests/alerts.yml",
        "deploy/prometheus/tests/slo.yml",
        "deploy/kubernetes/prometheusrule.yaml",
        "dashboards/overview.json",
    ] {
        assert!(files::text(file).contains(URL), "{file}");
        let changed = fs::read_to_string(copy.path().join(file)).unwrap();
        assert!(!changed.contains("http://127.0.0.1"), "{file}");
    }
}

#[test]
fn every_panel_that_the_runbook_names_exists() {
    let dashboards = all();
    let titles: BTreeSet<&str> = dashboards
        .iter()
        .flat_map(|(_, dashboard)| panels(dashboard))
        .map(|panel| files::string(panel, "title"))
        .collect();
    let page = files::text(PAGE);
    let mut count = 0;
    for part in page.split("<em>").skip(1) {
        let title = part.split("</em>").next().unwrap_or_default();
        assert!(titles.contains(title), "no panel {title}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

#[test]
fn prometheus_serves_the_page() {
    let server = serve(&[]);
    let Some(prometheus) = Prometheus::scraping(server.admin) else {
        return;
    };
    let answer = prometheus
        .get("/consoles/runbook.html")
        .expect("Prometheus answers");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.to_lowercase().contains("content-type: text/html"), "{head}");
    assert!(body.contains("<h2 id=\"chitchatdown\">"));
}
