//! The traces of a message, which real clients and a real server export to an OTLP collector.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod collector;
mod process;

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use collector::{Collector, Span};
use nix::sys::signal::Signal;
use process::{
    CHITCHAT, Process, external_program, load_generator, run, serve_with, succeed, text, unused_address,
    wait_until,
};

const SERVER: i32 = 2;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;
const INTERNAL: i32 = 1;

/// The variables of a process that exports to this collector without delay.
fn exporting(endpoint: &str) -> [(&str, &str); 2] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]
}

fn client(server: SocketAddr, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(CHITCHAT);
    command
        .args(arguments)
        .env("CHITCHAT_SERVER", server.to_string())
        .env("CHITCHAT_ROOM", "tea")
        .envs(exporting(endpoint));
    command
}

fn value<'a>(span: &'a Span, name: &str) -> &'a str {
    span.attributes
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {span:#?}"))
}

fn number(span: &Span, name: &str) -> i64 {
    value(span, name).parse().unwrap()
}

/// The value of a series on a page of metrics.
fn metric(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series} in {page}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_message_has_one_trace_from_its_sender_to_its_receivers() {
    let collector = Collector::start();
    let mut server = serve_with(&[], &exporting(&collector.endpoint));
    let mut listeners: Vec<Process> = ["Bob", "Cleo"]
        .map(|name| {
            let listener = Process::start(&mut client(
                server.address,
                &collector.endpoint,
                &["chat", "--name", name],
            ));
            listener.stdout_line(&format!("Participant {name} joined"));
            listener
        })
        .into();
    let arguments = ["chat", "--name", "Ada"];
    succeed(
        &mut client(server.address, &collector.endpoint, &arguments),
        "Hello, World!\n",
    );
    for listener in &mut listeners {
        listener.stdout_line("Hello, World!");
        listener.stdout_line("Participant Ada left");
        listener.close_stdin();
        listener.wait();
    }
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());

    let is_message = |span: &&Span| {
        span.attributes
            .get("chitchat.event.type")
            .is_some_and(|t| t == "message")
    };
    let send = &collector.spans("send rooms/{room}", 1)[0];
    let processed = collector.spans("process rooms/{room}", 1);
    let process = processed.iter().find(is_message).unwrap();
    let join_of = |name: &str| {
        let place = ["Bob", "Cleo", "Ada"]
            .iter()
            .position(|other| *other == name)
            .unwrap();
        let joins = collector.spans("join", 3);
        let mut joins: Vec<_> = joins
            .iter()
            .map(|join| (number(join, "chitchat.sequence"), join.clone()))
            .collect();
        joins.sort_by_key(|(sequence, _)| *sequence);
        joins[place].1.clone()
    };
    let of_message = |name: &str| -> Span {
        let spans = collector.spans(name, 1);
        spans
            .into_iter()
            .find(|span| is_message(&span) && span.parent == process.id)
            .unwrap()
    };
    let (append, broadcast) = (of_message("append"), of_message("broadcast"));

    assert_eq!((send.kind, send.parent.as_str()), (PRODUCER, ""));
    assert_eq!(process.kind, CONSUMER);
    assert_eq!((&process.trace, &process.parent), (&send.trace, &send.id));
    let join = join_of("Ada");
    assert_eq!(process.links, [(join.trace.clone(), join.id.clone())]);
    assert_eq!(join.kind, SERVER);
    assert_eq!(value(&join, "rpc.system.name"), "grpc");
    assert_eq!(value(&join, "rpc.method"), "itu.chitchat.ChatService/Chat");
    for child in [&append, &broadcast] {
        assert_eq!((child.kind, &child.trace), (INTERNAL, &send.trace));
        assert!(
            process.start <= child.start && child.end <= process.end,
            "{child:#?} in {process:#?}"
        );
    }
    assert!(append.end <= broadcast.start);
    assert_eq!(value(&append, "messaging.batch.message_count"), "1");
    assert!(number(&append, "chitchat.store.bytes") > 13);
    assert_eq!(value(&broadcast, "chitchat.subscribers"), "3");
    assert_eq!(value(&broadcast, "chitchat.subscribers.behind"), "0");

    // Each of the three receivers has a trace of its own, linked to the sender's.
    let received = collector.spans("receive rooms/{room}", 3);
    let received: Vec<_> = received.iter().filter(is_message).collect();
    assert_eq!(received.len(), 3);
    for span in &received {
        assert_eq!((span.kind, span.parent.as_str()), (CONSUMER, ""));
        assert_eq!(span.links, [(send.trace.clone(), send.id.clone())]);
        assert_ne!(span.trace, send.trace);
    }

    // All spans name the same message, and the Lamport time increases along its way.
    let (sent, time) = (
        number(send, "chitchat.lamport.time"),
        number(process, "chitchat.lamport.time"),
    );
    assert_eq!(number(process, "chitchat.lamport.received"), sent);
    assert!(time > sent, "{time} after {sent}");
    for span in &received {
        assert_eq!(number(span, "chitchat.lamport.received"), time);
        assert!(number(span, "chitchat.lamport.time") > time);
    }
    let message_id = value(send, "messaging.message.id");
    for span in [send, process, &append, &broadcast].into_iter().chain(received) {
        assert_eq!(value(span, "messaging.message.id"), message_id);
        assert_eq!(value(span, "chitchat.sequence"), "4");
        assert_eq!(value(span, "messaging.system"), "chitchat");
        assert_eq!(value(span, "messaging.destination.name"), "rooms/tea");
        assert_eq!(value(span, "messaging.destination.template"), "rooms/{room}");
        assert_eq!(value(span, "messaging.message.body.size"), "13");
        if span.kind != INTERNAL {
            assert!(
                span.name.starts_with(value(span, "messaging.operation.type")),
                "{span:#?}"
            );
        }
    }
    assert_eq!(process.resource["service.name"], "chitchat");
    assert_eq!(send.resource["service.name"], "chitchat-client");
    assert_eq!(process.resource["service.version"], env!("CARGO_PKG_VERSION"));

    // A log line belongs to the trace of its stream. No message text is logged.
    let joined = collector.record("client_joined");
    assert_eq!(
        (joined.trace, joined.span),
        (join_of("Bob").trace, join_of("Bob").id)
    );
    assert_eq!(joined.body, "client joined");
    assert_eq!(collector.record("draining").resource["service.name"], "chitchat");
    let logged = format!("{:?}", collector.all_records());
    assert!(!logged.contains("Hello"), "{logged}");
}

#[test]
fn a_message_by_call_is_linked_to_the_call_and_its_reader_to_the_message() {
    let collector = Collector::start();
    let named = [
        exporting(&collector.endpoint).as_slice(),
        &[
            ("OTEL_SERVICE_NAME", "tearoom"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ],
    ]
    .concat();
    let mut server = serve_with(&[], &named);
    let send = ["send", "--name", "Ada", "Hello"];
    succeed(&mut client(server.address, &collector.endpoint, &send), "");
    let tail = ["tail", "--count", "1"];
    succeed(&mut client(server.address, &collector.endpoint, &tail), "");
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    let sent = &collector.spans("send rooms/{room}", 1)[0];
    let process = &collector.spans("process rooms/{room}", 1)[0];
    let call = &collector.spans("itu.chitchat.ChatService/SendMessage", 1)[0];
    let received = &collector.spans("receive rooms/{room}", 1)[0];
    assert_eq!((&process.trace, &process.parent), (&sent.trace, &sent.id));
    assert_eq!(process.links, [(call.trace.clone(), call.id.clone())]);
    assert_eq!(received.links, [(sent.trace.clone(), sent.id.clone())]);
    assert_eq!(call.kind, SERVER);
    assert_eq!(value(call, "rpc.response.status_code"), "OK");
    assert_eq!(process.resource["service.name"], "tearoom");
    assert_eq!(process.resource["deployment.environment.name"], "test");
}

#[test]
fn the_span_of_a_rejected_message_has_the_reason_as_its_error() {
    let collector = Collector::start();
    let server = serve_with(&["--max-message-chars", "5"], &exporting(&collector.endpoint));
    // One on a stream, one by a call.
    let mut chat = client(server.address, &collector.endpoint, &["chat", "--name", "Ada"]);
    run(&mut chat, "Hello, World!\n");
    let mut send = client(
        server.address,
        &collector.endpoint,
        &["send", "--name", "Bob", "Hello, World!"],
    );
    assert!(!run(&mut send, "").status.success());

    let sent = collector.spans("send rooms/{room}", 2);
    let rejected: Vec<Span> = collector
        // The third is Ada's LEAVE.
        .spans("process rooms/{room}", 3)
        .into_iter()
        .filter(|span| span.attributes.contains_key("error.type"))
        .collect();
    assert_eq!((sent.len(), rejected.len()), (2, 2), "{rejected:#?}");
    for process in &rejected {
        assert!(process.is_error && process.kind == CONSUMER);
        assert_eq!(value(process, "error.type"), "message_too_long");
        assert!(number(process, "chitchat.lamport.time") > 0);
        assert!(!process.attributes.contains_key("chitchat.sequence"));
        let send = sent.iter().find(|send| send.trace == process.trace).unwrap();
        assert_eq!(process.parent, send.id);
        assert_eq!(process.links.len(), 1);
    }
}

#[test]
fn a_message_without_a_trace_context_gets_one_from_the_server() {
    let collector = Collector::start();
    let server = serve_with(&[], &exporting(&collector.endpoint));
    let mut plain = client(
        server.address,
        &collector.endpoint,
        &["send", "--name", "Ada", "Hello"],
    );
    succeed(plain.env("OTEL_SDK_DISABLED", "true"), "");
    let process = collector.spans("process rooms/{room}", 1).remove(0);
    assert_eq!(process.parent, "");
    let tail = ["tail", "--json", "--count", "1"];
    let received = succeed(&mut client(server.address, &collector.endpoint, &tail), "");
    let link = collector.spans("receive rooms/{room}", 1).remove(0).links;
    assert_eq!(link, [(process.trace, process.id)], "{received}");
    assert!(
        collector
            .all_spans()
            .iter()
            .all(|span| !span.name.starts_with("send "))
    );
}

#[test]
fn the_load_generator_exports_its_spans_as_a_sender() {
    let collector = Collector::start();
    let server = serve_with(&[], &exporting(&collector.endpoint));
    let address = server.address.to_string();
    let load = [
        "--server",
        &address,
        "--publishers",
        "1",
        "--subscribers",
        "1",
        "--count",
        "20",
    ];
    let mut generator = Command::new(load_generator());
    generator.args(load).envs(exporting(&collector.endpoint));
    succeed(&mut generator, "");
    let sent = collector.spans("send rooms/{room}", 20);
    let processed = collector.spans("process rooms/{room}", 20);
    for send in &sent {
        assert!(!send.is_error, "{send:#?}");
        let process = processed.iter().find(|process| process.parent == send.id);
        let process = process.unwrap_or_else(|| panic!("no child of {send:#?}"));
        assert_eq!(process.trace, send.trace);
        assert_eq!(
            number(process, "chitchat.lamport.received"),
            number(send, "chitchat.lamport.time")
        );
    }
}

#[test]
fn all_spans_are_exported_at_shutdown() {
    let collector = Collector::start();
    // Nothing is exported before the shutdown.
    let delayed = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let mut server = serve_with(&[], &delayed);
    let lines: String = (0..200).map(|line| format!("line {line}\n")).collect();
    let mut sending = client(server.address, &collector.endpoint, &["chat", "--name", "Ada"]);
    succeed(sending.env("OTEL_BSP_SCHEDULE_DELAY", "3600000"), &lines);
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    let messages = |name: &str| {
        let spans = collector.all_spans();
        let is_message =
            |span: &&Span| span.name == name && span.attributes["chitchat.event.type"] == "message";
        spans.iter().filter(is_message).count()
    };
    for name in [
        "send rooms/{room}",
        "process rooms/{room}",
        "append",
        "broadcast",
        "receive rooms/{room}",
    ] {
        assert_eq!(messages(name), 200, "{name}");
    }
    assert_eq!(collector.record("ended").body, "ended");
}

#[test]
fn an_unreachable_collector_is_counted_and_logged_once() {
    let nobody = unused_address();
    let endpoint = format!("http://{nobody}");
    let small_queue = [
        exporting(&endpoint).as_slice(),
        &[("OTEL_BSP_MAX_QUEUE_SIZE", "16")],
    ]
    .concat();
    let mut server = serve_with(&[], &small_queue);
    let lines: String = (0..300).map(|line| format!("line {line}\n")).collect();
    let mut sending = client(server.address, &endpoint, &["chat", "--name", "Ada"]);
    let output = run(sending.env("OTEL_SDK_DISABLED", "true"), &lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("line ").count(), 300);
    wait_until("the loss is counted", || {
        let lost = metric(
            &server.get("/metrics"),
            "chitchat_telemetry_dropped_total{signal=\"traces\"}",
        );
        // A JOIN, three spans for each of 300 messages, and possibly a LEAVE.
        (lost >= 901.0).then_some(())
    });
    server.log_line("\"event\":\"telemetry_lost\"");
    // When the collector is back, it receives the new spans.
    let collector = Collector::start_at(nobody);
    wait_until("something is exported", || {
        let mut send = client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]);
        assert!(run(send.env("OTEL_SDK_DISABLED", "true"), "").status.success());
        (!collector.all_spans().is_empty()).then_some(())
    });
    server.log_line("\"event\":\"telemetry_exported\"");
    drop(collector);
    let started = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    let rest = server.rest_of_log();
    let stderr = rest
        .iter()
        .filter(|line| line.contains("telemetry_lost") && line.contains("traces"));
    assert_eq!(stderr.count(), 0, "{rest:#?}");

    // A client reports it too, and still sends its message.
    let server = serve_with(&[], &[]);
    let output = run(
        &mut client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]),
        "",
    );
    assert!(output.status.success());
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("chitchat: 1 spans could not be exported"),
        "{stderr}"
    );
}

/// The collector accepts connections and never answers.
#[test]
fn a_hanging_collector_delays_neither_client_nor_server() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut server = serve_with(&["--drain-timeout", "2s"], &exporting(&endpoint));
    let started = Instant::now();
    let output = run(
        &mut client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]),
        "",
    );
    assert!(output.status.success());
    // The client waits two seconds for its last export.
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("chitchat: 1 spans could not be exported"),
        "{stderr}"
    );
    let started = Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_server_with_a_disabled_sdk_exports_nothing() {
    let collector = Collector::start();
    let server = serve_with(
        &[],
        &[
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint),
        ],
    );
    let mut sending = client(
        server.address,
        &collector.endpoint,
        &["send", "--name", "Ada", "Hello"],
    );
    // The context of the sender is forwarded nevertheless.
    succeed(&mut sending, "");
    let send = collector.spans("send rooms/{room}", 1).remove(0);
    let tail = ["tail", "--count", "1"];
    succeed(&mut client(server.address, &collector.endpoint, &tail), "");
    assert_eq!(
        collector.spans("receive rooms/{room}", 1)[0].links,
        [(send.trace, send.id)]
    );
    assert_eq!(collector.all_spans().len(), 2, "{:#?}", collector.all_spans());
    assert!(collector.all_records().is_empty());
}

#[test]
fn the_traces_that_senders_request_are_rate_limited() {
    let collector = Collector::start();
    let limited = [
        exporting(&collector.endpoint).as_slice(),
        &[
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
            ("CHITCHAT_TRACE_WISHES", "2"),
        ],
    ]
    .concat();
    let mut server = serve_with(&[], &limited);
    let lines: String = (0..100).map(|line| format!("line {line}\n")).collect();
    let began = Instant::now();
    succeed(
        &mut client(server.address, &collector.endpoint, &["chat", "--name", "Ada"]),
        &lines,
    );
    let seconds = began.elapsed().as_secs_f64();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert_eq!(collector.spans("send rooms/{room}", 100).len(), 100);
    let recorded = collector.spans("process rooms/{room}", 2).len();
    assert!(
        recorded as f64 <= 2.0 * (seconds + 1.0) + 1.0,
        "{recorded} in {seconds} s"
    );
}

#[test]
fn invalid_exporter_settings_are_reported_with_the_other_errors() {
    let mut command = Command::new(CHITCHAT);
    command
        .args(["serve", "--in-memory", "--max-rooms", "0"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost")
        .env("OTEL_TRACES_SAMPLER", "sometimes");
    let output = run(&mut command, "");
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(
        stderr.contains("--max-rooms is 0") && stderr.contains("OTEL_TRACES_SAMPLER is \"sometimes\""),
        "{stderr}"
    );
}

#[test]
fn an_opentelemetry_collector_forwards_everything() {
    let Some(program) = external_program("CHITCHAT_TEST_OTELCOL", "otelcol", &["--version"]) else {
        return;
    };
    let collector = Collector::start();
    let endpoint = unused_address();
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let target = collector.endpoint.strip_prefix("http://").unwrap();
    let pipeline = "{ receivers: [otlp], exporters: [otlp] }";
    let yaml = format!(
        "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{endpoint}\" }} }} }} }}\n\
         exporters: {{ otlp: {{ endpoint: \"{target}\", compression: none, tls: {{ insecure: true }} }} }}\n\
         service:\n  telemetry: {{ metrics: {{ level: none }} }}\n  pipelines: {{ traces: {pipeline}, logs: {pipeline} }}\n"
    );
    std::fs::write(config.path(), yaml).unwrap();
    let mut relay = Process::start(Command::new(program).arg("--config").arg(config.path()));
    relay.stderr_line("Everything is ready");
    let through = format!("http://{endpoint}");
    let mut server = serve_with(&[], &exporting(&through));
    let send = ["send", "--name", "Ada", "Hello"];
    succeed(&mut client(server.address, &through, &send), "");
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    let sent = collector.spans("send rooms/{room}", 1).remove(0);
    let process = collector.spans("process rooms/{room}", 1).remove(0);
    let append = collector.spans("append", 1).remove(0);
    assert_eq!((&process.trace, &process.parent), (&sent.trace, &sent.id));
    assert_eq!((&append.trace, &append.parent), (&sent.trace, &process.id));
    assert_eq!(collector.record("ended").resource["service.name"], "chitchat");
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().success());
}
